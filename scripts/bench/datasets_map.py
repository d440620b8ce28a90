"""The way that users have: datasets.map over apply_chat_template. python -m scripts.bench.datasets_map …"""

import sys


def main(data: str, tokenizer: str, cache: str, num_processes: str) -> None:
    """Tokenize the conversations of a .jsonl file into a data set under `cache`, as memory-mapped Arrow."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    theirs = AutoTokenizer.from_pretrained(tokenizer)
    rows = datasets.load_dataset("json", data_files=data, split="train", cache_dir=cache)
    rows.map(
        lambda row: theirs.apply_chat_template(row["conversations"], return_dict=True),
        remove_columns=rows.column_names,
        num_proc=int(num_processes),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
