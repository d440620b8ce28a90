// A conversation's tokens with the mask over them and, where a model has looked, the attention of its layers.
//
// A view is {title, tokens, roles, blocks, masks: [{name, rows}], layers: [{mask, weights}]}: `rows` are strings
// of 0 and 1, a row per token that looks; `weights` are bytes in base64, 255 times the root of a probability.
const MOST_LOOKED_AT = 4

class Look {
  constructor(place) {
    this.root = made("look")
    this.part = name => this.root.querySelector(name)
    this.pointed = null
    place.replaceChildren(this.root)
    this.part(".views select").onchange = event => this.take(Number(event.target.value))
    this.part(".drawn select").onchange = () => { this.draw(); this.point(this.pointed) }
    this.listen(this.part(".tokens"), this.part(".scroll canvas"))
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw())
  }

  listen(tokens, canvas) {
    const numberOf = event => event.target.dataset.number
    tokens.onpointerover = tokens.onpointerdown = event => numberOf(event) && this.point(Number(numberOf(event)))
    tokens.onkeydown = event => this.walk(event)
    canvas.onpointermove = canvas.onpointerdown = event => {
      const row = Math.floor(event.offsetY / this.cell)
      if (row >= 0 && row < this.tokens.length) this.point(row)
    }
  }

  // Show one of several views of a conversation.
  show(views) {
    this.views = views
    this.part(".views").hidden = views.length < 2
    fill(this.part(".views select"), views.map((view, n) => [String(n), view.title]), "0")
    this.take(0)
  }

  take(number) {
    this.view = this.views[number]
    this.weights = this.view.layers.map(layer => Uint8Array.from(atob(layer.weights), c => c.charCodeAt(0)))
    const { masks, layers, roles } = this.view
    const tokens = this.tokens = this.view.tokens.map(token => (token.trim() ? token : token.replaceAll(" ", "␣")))
    const drawn = [...masks.map((mask, n) => [`mask ${n}`, word(`masks.${mask.name || "all"}`)]),
      ...layers.map((layer, n) => [`layer ${n}`, word("layer", { n })])]
    this.part(".drawn").hidden = drawn.length < 2
    fill(this.part(".drawn select"), drawn, "mask 0")
    this.part(".tokens").replaceChildren(...tokens.map((token, n) => {
      const span = element("span", token, roles[n] === "assistant" ? "answer" : "")
      Object.assign(span, { id: `token-${Look.count}-${n}`, role: "option" })
      span.dataset.number = n
      return span
    }))
    Look.count += 1
    this.caption = this.describe()
    this.part("figcaption").textContent = this.caption
    this.part("canvas[role=img]").setAttribute("aria-label", word("picture", { caption: this.caption }))
    this.draw()
    this.point(this.pointed !== null && this.pointed < tokens.length ? this.pointed : null)
  }

  describe() {
    const runs = runsOf(this.view.blocks).filter(run => run.value >= 0 && run.last > run.first)
    const blocks = runs.map(run => word("block", run)).join(word("and")) || word("noBlocks")
    return word("caption", { mask: this.view.title, tokens: this.tokens.length, blocks })
  }

  walk(event) {
    const last = this.tokens.length - 1, now = this.pointed ?? -1
    const next = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: last }
    if (!(event.key in next)) return
    event.preventDefault()
    this.point(Math.max(0, Math.min(last, next[event.key])))
    this.part(".tokens [aria-selected=true]").scrollIntoView({ block: "nearest" })
  }

  // Tell of a token which tokens it sees, and where each layer looks from it.
  point(number) {
    this.pointed = number
    const spans = [...this.part(".tokens").children], tokens = this.part(".tokens")
    tokens.classList.toggle("pointing", number !== null)
    spans.forEach((span, n) => span.setAttribute("aria-selected", n === number))
    if (number === null) tokens.removeAttribute("aria-activedescendant")
    else tokens.setAttribute("aria-activedescendant", spans[number].id)
    this.part(".layers").replaceChildren(...(number === null ? [] : this.view.layers.map((_, n) => this.strip(n))))
    this.part(".pointed").textContent = number === null ? "" : this.sight(number)
    this.outline()
    this.mark()
  }

  sight(number) {
    const row = [...this.rows[number]], seen = runsOf(row).filter(run => run.value === "1")
    return word("sees", {
      token: this.tokens[number], n: number, role: word(`roles.${this.view.roles[number]}`),
      count: row.filter(cell => cell === "1").length, all: row.length,
      runs: seen.map(({ first, last }) => (first === last ? first : `${first}–${last}`)).join(", "),
    })
  }

  // The attention of one layer from the token that is pointed at: a strip of colours, and the most in words.
  strip(layer) {
    const item = document.createElement("li"), canvas = document.createElement("canvas")
    const probabilities = this.look(layer, this.pointed), count = probabilities.length
    const cell = Math.max(1, Math.min(8, Math.floor(240 / count)))
    Object.assign(canvas, { width: cell * count, height: 12, ariaHidden: "true" })
    const pen = canvas.getContext("2d")
    pen.fillStyle = this.colours.look
    probabilities.forEach((p, n) => { pen.globalAlpha = Math.sqrt(p); pen.fillRect(n * cell, 0, cell, 12) })
    const most = probabilities.map((p, n) => [p, n]).sort((a, b) => b[0] - a[0]).slice(0, MOST_LOOKED_AT)
    const words = most.filter(([p]) => p >= 0.01).map(([p, n]) => `${this.tokens[n]} ${Math.round(100 * p)}%`)
    item.append(canvas, element("span", word("looks", { n: layer, most: words.join(", ") })))
    return item
  }

  // The probabilities of a layer from one token to all.
  look(layer, row) {
    const side = this.tokens.length
    return [...this.weights[layer].subarray(row * side, (row + 1) * side)].map(level => (level / 255) ** 2)
  }

  get drawn() {
    const [kind, number] = this.part(".drawn select").value.split(" ")
    return { kind, number: Number(number) }
  }

  get rows() {
    const { kind, number } = this.drawn
    return this.view.masks[kind === "mask" ? number : this.view.layers[number].mask].rows
  }

  // Draw the mask, or the attention of a layer, once; the outline of a row comes on top.
  draw() {
    const style = getComputedStyle(this.root), side = this.tokens.length
    const names = ["hidden", "earlier", "own", "later", "look", "text"]
    this.colours = Object.fromEntries(names.map(name => [name, style.getPropertyValue(`--${name}`)]))
    const room = this.part(".scroll").clientWidth || 340
    this.cell = Math.max(2, Math.min(14, Math.floor(Math.min(room, 640) / side)))
    this.picture = document.createElement("canvas")
    this.picture.width = this.picture.height = this.cell * side
    const pen = this.picture.getContext("2d")
    for (let row = 0; row < side; row++) this.drawRow(pen, row)
    this.outline()
  }

  outline() {
    const canvas = this.part(".scroll canvas"), pen = canvas.getContext("2d")
    canvas.width = canvas.height = this.picture.width
    pen.drawImage(this.picture, 0, 0)
    pen.strokeStyle = this.colours.text
    pen.lineWidth = 2
    if (this.pointed !== null) pen.strokeRect(0, this.pointed * this.cell, canvas.width, this.cell)
  }

  drawRow(pen, row) {
    const { kind, number } = this.drawn, cells = this.rows[row]
    const probabilities = kind === "layer" ? this.look(number, row) : null
    const gap = this.cell > 4 ? 1 : 0
    for (let column = 0; column < cells.length; column++) {
      pen.globalAlpha = 1
      pen.fillStyle = this.colours[probabilities || cells[column] === "0" ? "hidden" : this.kindOf(row, column)]
      pen.fillRect(column * this.cell, row * this.cell, this.cell - gap, this.cell - gap)
      if (!probabilities) continue
      pen.globalAlpha = Math.sqrt(probabilities[column])
      pen.fillStyle = this.colours.look
      pen.fillRect(column * this.cell, row * this.cell, this.cell - gap, this.cell - gap)
    }
  }

  kindOf(row, column) {
    const { blocks } = this.view, isOwn = blocks[row] >= 0 && blocks[row] === blocks[column]
    return !isOwn ? "earlier" : column > row ? "later" : "own"
  }

  // Mark the tokens that the one pointed at sees, each with a bar as high as it is looked at.
  mark() {
    const spans = [...this.part(".tokens").children], { kind, number } = this.drawn
    const cells = this.pointed === null ? "" : this.rows[this.pointed]
    const probabilities = kind === "layer" && cells ? this.look(number, this.pointed) : null
    spans.forEach((span, n) => {
      span.classList.toggle("seen", cells[n] === "1")
      const height = cells[n] === "1" ? (probabilities ? 7 * Math.sqrt(probabilities[n]) : 3) : 0
      const colour = probabilities ? "look" : cells && this.kindOf(this.pointed, n)
      span.style.boxShadow = height ? `inset 0 -${height}px var(--${colour})` : ""
    })
  }
}
Look.count = 0

// The runs of equal values in a list: [{value, first, last}].
function runsOf(values) {
  const runs = []
  values.forEach((value, n) => {
    if (runs.length && runs.at(-1).value === value) runs.at(-1).last = n
    else runs.push({ value, first: n, last: n })
  })
  return runs
}
