"""What a training can be told: frozen dataclasses whose fields are flags, YAML keys and help texts alike."""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal

from dataset.batch_settings import RowSettings
from model.errors import UserError
from model.strategies import PromptMask, TextMask
from trainer.model_settings import WEIGHTLESS, ModelSettings

FRESH = "fresh"
"""What --init says instead of a model directory."""
LENGTHS = ("max_steps", "epochs", "max_tokens")
MAY_BE_ZERO = ("samples", "label_smoothing")
MOST = 10**15  # of anything counted, so that products of a few stay numbers
LARGEST_RATE, LARGEST_NORM = 1e6, 1e30  # so that what float32 makes of them and of products stays finite


def free(default: Any = MISSING) -> Any:
    """Declare a setting that a continued training may change: no result depends on it, or by a fact alone.

    Such facts are compared themselves: the data, the weights of --init, the rows of a step, the dtype.
    """
    return field(default=default, metadata={"is_free": True})


@dataclass(frozen=True)
class OptimizerSettings:
    """How gradients become updates."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for everything, or muon for the matrices of the layers and adamw for the rest"""
    learning_rate: float = 1e-3
    """peak of the schedule; muon's updates are scaled so that both share it"""
    weight_decay: float = 0.1
    """decoupled decay of the layers' matrices; norms and embeddings have none"""
    beta1: float = 0.9
    """decay of adamw's first moment"""
    beta2: float = 0.95
    """decay of adamw's second moment"""
    max_gradient_norm: float = 1.0
    """gradients of a larger norm are scaled down to it"""
    router_bias_rate: float | None = None
    """how far the bias of each expert moves towards equal loads after a step; default: 0.001"""

    def __post_init__(self) -> None:
        for name, most in (("learning_rate", LARGEST_RATE), ("max_gradient_norm", LARGEST_NORM)):
            if not 0 < getattr(self, name) <= most:
                got = getattr(self, name)
                raise UserError(f"--optimizer.{name}: expected more than 0, up to {most:g}, got {got}")
        for name in ("weight_decay", "router_bias_rate"):
            if not 0 <= (getattr(self, name) or 0) <= LARGEST_RATE:
                wanted = f"expected 0 to {LARGEST_RATE:g}"
                raise UserError(f"--optimizer.{name}: {wanted}, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                wanted = f"--optimizer.{name}: expected 0 or more and below 1"
                raise UserError(f"{wanted}, got {getattr(self, name)}")


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves over the steps: up, then (wsd) constant, then down."""

    name: Literal["wsd", "cosine", "linear"] = "wsd"
    """form of the decay; wsd stays at the peak and decays linearly at the end"""
    warmup_steps: int = 20
    """steps of the linear rise to the peak; a tenth of all steps where this is over a third of them"""
    decay_fraction: float = 0.4
    """share of all steps in which wsd decays; cosine and linear decay from the warmup on"""
    final_fraction: float = 0.0
    """learning rate after the last step, as a share of the peak"""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 <= self.decay_fraction <= 1 or not 0 <= self.final_fraction <= 1:
            raise UserError("schedule: expected warmup_steps of 0 or more, and fractions between 0 and 1")


@dataclass(frozen=True)
class LoraSettings:
    """Train thin factors beside frozen weights (LoRA: Hu et al. 2021, arXiv 2106.09685)."""

    rank: int | None = None
    """train two factors of this rank beside each matrix, whose weights stay as --init has them; null: train
    the weights"""
    alpha: int | None = None
    """the product of two factors counts alpha / rank times; default: twice the rank"""
    dropout: float | None = None
    """share of the inputs of factors that a step leaves out at random; default: none"""
    target_modules: tuple[str, ...] | None = None
    """linear layers that get factors, by the ends of their names: q_proj v_proj; default: all in the layers,
    of a mixture of experts those of attention"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if self.rank is None and value is not None:
                raise UserError(f"--lora.{name}: expected --lora.rank with it, got none")
        for name in ("rank", "alpha"):
            if (value := getattr(self, name)) is not None and not 0 < value < 2**20:
                raise UserError(f"--lora.{name}: expected a number above 0, got {value}")
        if not 0 <= (self.dropout or 0) < 1:
            raise UserError(f"--lora.dropout: expected 0 or more and below 1, got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(RowSettings):
    """What all trainings have in common."""

    data: tuple[str, ...] = free()
    """token stores to train on"""
    out: str = free()
    """run directory to write, or to continue"""
    validation: tuple[str, ...] = free(())
    """token stores to measure the loss on"""
    init: str = free()
    """model directory to start from (./fresh, if that is its name), with other windows if --model names them;
    fresh: new weights, shaped by --model"""
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()

    batch_size: int = free(16)
    """rows per process and backward pass"""
    gradient_accumulation: int = free(1)
    """backward passes per optimizer step"""
    max_steps: int | None = free(None)
    """length of the training in optimizer steps; give this, epochs or max_tokens"""
    epochs: float | None = free(None)
    """length of the training in passes over the data"""
    max_tokens: int | None = free(None)
    """length of the training in real tokens, padding not counted"""
    max_minutes: float | None = free(None)
    """save and stop after this time, to be continued by the same command; never shapes the schedule"""

    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = free("auto")
    """of matrix products; auto: bfloat16 where the hardware multiplies it natively, float16 with a scaled
    loss on GPUs that multiply only that (weights stay float32)"""
    compile: Literal["auto", "always", "never"] = free("auto")
    """torch.compile of each layer; auto: where a compiler works and the training is long enough, and as it
    began where a run is continued"""
    sharding: Literal["auto", "none", "fsdp"] = free("auto")
    """fsdp: each process keeps a part of weights, gradients and optimizer state (FSDP2); none: all of them;
    auto: fsdp if the launcher's configuration says so"""
    gradient_checkpointing: bool = free(False)
    """compute the inside of each layer again in the backward pass: saves memory and changes no result"""

    log_every_steps: int = free(20)
    """optimizer steps between two log lines, besides that of the first: loss, learning rate, norm of the
    gradient, real tokens/those with loss a second, share of time that waits for data, arithmetic as a share
    of the machine's peak, most memory held, time left"""
    save_every_steps: int = free(500)
    """optimizer steps between two saves; the end is always saved"""
    keep_checkpoints: int = free(2)
    """last saves to keep, besides the one with the least loss on the first store of --validation"""
    validate_every_steps: int = free(500)
    """optimizer steps between two validations; the end is always validated"""
    samples: int = free(3)
    """texts of the (validation) data that the model continues, or questions that it answers, at every
    validation, into samples.jsonl; 0: none"""
    sample_prompts: tuple[str, ...] = free(())
    """texts to continue, or questions to answer, instead of those of the data"""
    sample_tokens: int = free(48)
    """longest sample in tokens"""
    resume: Literal["auto", "never"] = free("auto")
    """auto: continue the run that lies in --out; never: refuse to"""
    tracker: str = free("none")
    """experiment tracker, by its name in accelerate: none, wandb, tensorboard, trackio, swanlab …"""

    @staticmethod
    def rivals(key: str, value: str) -> tuple[str, ...]:
        """Return the keys that do not go with this one: other lengths, or a shape beside --init."""
        shape = tuple(f"model.{each.name}" for each in fields(ModelSettings) if each.name not in WEIGHTLESS)
        if key in LENGTHS:
            return tuple(name for name in LENGTHS if name != key)
        if key == "init":
            return () if value == FRESH else shape
        return ("init",) if key in shape else ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_length()
        self._check_numbers()
        if self.lora.rank is not None:
            self._check_adapter()
        if self.init != FRESH and replace(self.model, **dict.fromkeys(WEIGHTLESS)) != ModelSettings():
            raise UserError(
                "--model and --init: expected one of them, got both; --init brings its own shape, of which "
                f"{', '.join(f'--model.{name}' for name in WEIGHTLESS)} alone may change"
            )

    def _check_length(self) -> None:
        lengths = {name: getattr(self, name) for name in LENGTHS}
        given = [f"--{name} {value}" for name, value in lengths.items() if value is not None]
        if len(given) != 1:
            names = " or ".join(f"--{name}" for name in lengths)
            wanted = f"expected one of {names}, got {' and '.join(given) or 'none'}"
            raise UserError(f"{wanted}; null takes one back")

    def _check_adapter(self) -> None:
        if self.init == FRESH:
            raise UserError("--lora.rank: expected --init with a model to adapt, got fresh")
        if self.lora.dropout and self.gradient_checkpointing:
            wanted = "--lora.dropout: expected it without --gradient_checkpointing"
            raise UserError(f"{wanted}, which computes layers again, and would leave out other inputs")
        if self.optimizer.router_bias_rate is not None:
            wanted = "--optimizer.router_bias_rate: expected it without --lora.rank"
            raise UserError(f"{wanted}; routers are frozen")

    def _check_numbers(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in (int, float) or name == "seed":
                continue
            if value < 0 or value == 0 and name not in MAY_BE_ZERO:
                least = "0 or more" if name in MAY_BE_ZERO else "more than 0"
                raise UserError(f"--{name}: expected {least}, got {value}")
            if value > MOST:
                raise UserError(f"--{name}: expected at most {MOST:,}, got more")

    def fixed(self) -> dict[str, Any]:
        """Return what a continued training must keep, dotted key to value."""
        free_names = {field.name for field in fields(self) if field.metadata.get("is_free")}
        return {key: value for key, value in flatten(to_plain(self)).items() if key not in free_names}


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings):
    """Pretraining on text, of a new model or of a saved one."""

    init: str = free(FRESH)
    prompt_mask: TextMask | None = free(None)
    """which tokens of a random beginning of each text see later ones; default: causal, or that of --init"""
    supervise: Literal["all", "suffix"] | None = None
    """tokens that carry loss: all, or those after a random beginning; default: all that may"""


@dataclass(frozen=True, kw_only=True)
class SftSettings(TrainSettings):
    """Supervised fine-tuning on conversations, of a saved model or of a new one."""

    prompt_mask: PromptMask | None = free(None)
    """which prompt tokens see later ones; default: causal, or that of --init"""
    supervise: Literal["answers", "last", "all"] | None = None
    """tokens that carry loss: answers, the last one, or all (causal only); default: the answers that may"""


@dataclass(frozen=True, kw_only=True)
class DpoSettings(SftSettings):
    """Preference tuning of a saved model, on pairs of answers."""

    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-6)
    supervise: Literal["answers", "last"] | None = None
    """answers of a side that are compared, from where the sides part on: all, or the last one"""
    loss: Literal["dpo", "ipo"] = "dpo"
    """dpo: the more the rewards of a pair differ the better; ipo: for the mean token, by 1 / 2"""
    beta: float = 0.1
    """how much a reward counts: lower values let the model go farther from --init"""
    label_smoothing: float = 0.0
    """share of the pairs that are taken to be the wrong way round, below 0.5"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == FRESH:
            raise UserError("--init: expected a model directory, got fresh; rewards are relative to it")
        if self.label_smoothing >= 0.5:
            raise UserError(f"--label_smoothing: expected less than 0.5, got {self.label_smoothing}")
        if self.label_smoothing and self.loss != "dpo":
            raise UserError(f"--label_smoothing has no effect with --loss {self.loss}; leave one of them out")


def to_plain(settings: TrainSettings) -> dict[str, Any]:
    """Return settings as values of YAML and JSON."""
    return json.loads(json.dumps(asdict(settings)))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted keys, as flags are written.

    Raises `UserError` for a key that is written in both ways.
    """
    flat = {}
    for key, value in values.items():
        more = flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        if twice := flat.keys() & more:
            raise UserError(f"{min(twice)} stands twice; keep one of them")
        flat |= more
    return flat
