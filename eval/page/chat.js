// Conversations with one model or two: a question goes to each pane, and the answers stream.
const all = selector => document.querySelectorAll(selector)
const one = selector => document.querySelector(selector)
const panes = []
let models = []

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" }
  if (one("#key").value) headers.Authorization = `Bearer ${one("#key").value}`
  const options = body ? { method: "POST", body: JSON.stringify(body), headers, signal } : { headers, signal }
  const answer = await fetch(path, options)
  if (answer.ok) return answer
  const told = await answer.json().catch(() => null)
  throw new Error(told?.error?.message ?? `${answer.status} ${answer.statusText}`)
}

// Yield the records of a stream of events.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const parts = (rest + value).split("\n\n")
    rest = parts.pop()
    for (const part of parts) {
      const data = part.replace(/^data: /, "")
      if (data === "[DONE]") return
      const record = JSON.parse(data)
      if (record.error) throw new Error(record.error.message)
      yield record
    }
  }
}

class Pane {
  constructor(model) {
    this.root = made("pane")
    this.part = name => this.root.querySelector(name)
    this.messages = []
    this.controller = null
    one("#panes").append(this.root)
    fill(this.part(".model"), models.map(each => [each.id, each.id]), model)
    this.part(".model").onchange = () => this.changeModel()
    this.part(".mask").onchange = () => this.changeMask()
    this.changeModel()
  }

  get model() {
    return models.find(each => each.id === this.part(".model").value)
  }

  get mask() {
    return this.part(".mask").value
  }

  changeModel() {
    const { id, prompt_mask: trained, prompt_masks: masks } = this.model
    this.part(".log").dataset.model = id
    translate(this.root)
    fill(this.part(".mask"), masks.map(each => [each, each === trained ? word("trained", { mask: each }) : each]), trained)
    this.answerAgain({ ...this.said, mask: id })
  }

  changeMask() {
    this.answerAgain(this.said)
  }

  // Answer the last question anew, with what was said before below the new answer.
  answerAgain(former) {
    this.stop()
    if (this.messages.at(-1)?.role !== "assistant") return
    this.messages.pop()
    this.part(".log").lastElementChild.remove()
    this.answer(former)
  }

  ask(question) {
    this.messages.push({ role: "user", content: question })
    this.add("user", word("you")).append(element("div", question))
    return this.answer(null)
  }

  // Go on from a conversation of the other pane: its last question is answered here, too.
  takeOver(messages) {
    const last = messages.findLastIndex(message => message.role === "user")
    if (last < 0) return
    this.messages = messages.slice(0, last)
    for (const { role, content } of this.messages) {
      const title = role === "user" ? word("you") : panes[0].model.id
      this.add(role, title).append(element("div", content))
    }
    this.ask(messages[last].content)
  }

  add(kind, title) {
    const article = element("article", "", kind)
    article.append(element("h3", title))
    this.part(".log").append(article)
    return article
  }

  async answer(former) {
    const { id } = this.model, mask = this.mask, controller = (this.controller = new AbortController())
    const article = this.add("assistant", `${id}, ${mask}`), log = this.part(".log")
    const thought = element("div", "", "thought"), content = element("div", "", "content")
    article.append(thought, content)
    if (former?.text) article.append(element("p", word("former", former), "former"))
    log.setAttribute("aria-busy", "true")
    this.tell(word("busy"))
    this.said = { mask, text: "" }
    changed()
    try {
      const message = await this.stream(id, mask, controller.signal, (name, text) => {
        const place = name === "thought" ? thought : content
        place.append(text)
        this.said.text = content.textContent
        log.scrollTop = log.scrollHeight
      })
      if (controller !== this.controller) return
      this.messages.push(message)
      await this.look(id, mask, controller.signal)
    } catch (error) {
      if (controller !== this.controller) return
      const isStopped = error.name === "AbortError"
      if (isStopped && content.textContent) this.messages.push({ role: "assistant", content: content.textContent })
      else if (this.messages.at(-1)?.role === "user") this.messages.pop()
      this.tell(isStopped ? word("stopped") : word("failed", { message: error.message }), !isStopped)
    } finally {
      if (controller === this.controller) this.controller = null
      log.removeAttribute("aria-busy")
      changed()
    }
  }

  // Stream an answer, its pieces to `show`; return it as a message.
  async stream(model, mask, signal, show) {
    const body = { model, prompt_mask: mask, messages: this.conversation(), stream: true,
      stream_options: { include_usage: true } }
    if (one("#length").value) body.max_tokens = Number(one("#length").value)
    if (one("#temperature").value) body.temperature = Number(one("#temperature").value)
    const message = { role: "assistant", content: "" }
    let reason = "", usage = null
    for await (const record of events(await ask("v1/chat/completions", body, signal))) {
      usage = record.usage ?? usage
      const [choice] = record.choices
      if (!choice) continue
      reason = choice.finish_reason ?? reason
      const { content, reasoning_content: thought, tool_calls: calls } = choice.delta
      if (thought) show("thought", thought)
      if (thought) message.reasoning_content = (message.reasoning_content ?? "") + thought
      if (content) show("content", content)
      message.content += content ?? ""
      if (calls) show("content", `${word("calls")}: ${JSON.stringify(calls.map(call => call.function))}`)
      if (calls) message.tool_calls = calls.map(({ index, ...call }) => call)
    }
    this.end = word("done", { tokens: usage.completion_tokens, prompt: usage.prompt_tokens,
      reused: usage.prompt_tokens_details.cached_tokens, reason: word(`reasons.${reason}`) })
    return message
  }

  conversation() {
    const system = one("#system").value
    return system ? [{ role: "system", content: system }, ...this.messages] : this.messages
  }

  // Draw the mask over the conversation so far.
  async look(model, mask, signal) {
    this.tell(word("looking"))
    const view = await (await ask("look", { model, prompt_mask: mask, messages: this.conversation() }, signal)).json()
    this.drawing ??= new Look(this.part(".place"))
    this.drawing.show([view])
    this.tell(this.end)
  }

  tell(text, isError = false) {
    this.part(".status").textContent = text
    this.part(".status").classList.toggle("error", isError)
  }

  stop() {
    this.controller?.abort()
  }

  forget() {
    this.stop()
    this.controller = this.drawing = null
    this.messages = []
    this.said = null
    this.part(".log").replaceChildren()
    this.part(".place").replaceChildren()
    this.tell("")
  }
}

// Bring the buttons up to date.
function changed() {
  const isBusy = panes.some(pane => pane.controller)
  one("#stop").disabled = !isBusy
  one("#send").disabled = isBusy || !panes.length
  one("#beside").disabled = !panes.length
}

function send(event) {
  event.preventDefault()
  const question = one("#question").value.trim()
  if (!question || one("#send").disabled) return
  one("#question").value = ""
  for (const pane of panes) pane.ask(question)
}

// Show a second pane, with another model or else another mask, or take it away.
function setBeside(isWanted) {
  one("#beside").setAttribute("aria-pressed", isWanted)
  one("#panes").classList.toggle("two", isWanted)
  if (!isWanted) {
    const pane = panes.pop()
    pane.forget()
    pane.root.remove()
    changed()
    return
  }
  const other = models.find(each => each.id !== panes[0].model.id)
  const pane = new Pane((other ?? panes[0].model).id)
  panes.push(pane)
  if (!other) pane.part(".mask").value = pane.model.prompt_masks.find(mask => mask !== panes[0].mask)
  pane.takeOver(panes[0].messages)
}

function setLanguage(chosen) {
  language = chosen
  document.documentElement.lang = language
  translate(document)
  one("#language").textContent = word("other")
  one("#language").lang = word("otherLanguage")
  for (const pane of panes) pane.drawing?.show(pane.drawing.views)
  alone?.show(alone.views)
}

async function begin() {
  one("#ask").hidden = false
  one("#ask").onsubmit = send
  one("#stop").onclick = () => panes.forEach(pane => pane.stop())
  one("#anew").onclick = () => { panes.forEach(pane => pane.forget()); one("#question").focus() }
  one("#beside").onclick = () => setBeside(panes.length < 2)
  one("#question").onkeydown = event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event)
  }
  one("#key").onchange = open
  await open()
}

// Find out which models there are; a key may be missing, or wrong.
async function open() {
  try {
    models = (await (await ask("v1/models")).json()).data
    if (!panes.length) panes.push(new Pane(models[0].id))
    one("#trouble").textContent = ""
  } catch (error) {
    one("#trouble").textContent = word("failed", { message: error.message })
    one("#ask details").open = true // where the key stands
  }
  changed()
}

const views = JSON.parse(one("#data").textContent)
let alone = null
setLanguage(language)
one("#language").onclick = () => setLanguage(word("otherLanguage"))
if (views) {
  alone = new Look(one("#panes"))
  alone.show(views)
} else begin()
