// What the page says, in two languages. `{name}` stands for a value.
const WORDS = {
  en: {
    tagline: "Which token may see which? Ask a model, and look.", other: "中文", otherLanguage: "zh",
    settings: "Settings", system: "System message", temperature: "Temperature", length: "Most tokens", key: "Key",
    question: "Question", send: "Send", stop: "Stop", anew: "New conversation", beside: "Side by side",
    model: "Model", mask: "Prompt mask", trained: "{mask} (as trained)", conversation: "Conversation with {model}",
    you: "You", thought: "Thought", calls: "Calls", former: "Under {mask} it said: {text}", drawn: "Drawn",
    tokens: "Tokens of the conversation", layer: "layer {n}",
    hint: "Point at a token, or walk with the arrow keys, to see which tokens it attends to.",
    earlier: "sees an earlier token", own: "sees its own block, earlier", later: "sees its own block, later",
    caption: "Mask {mask}: {tokens} tokens, {blocks}",
    noBlocks: "each sees itself and what came before", block: "{first}–{last} see each other both ways",
    sees: "{token} (token {n}, {role}) sees {count} of {all} tokens: {runs}.",
    looks: "layer {n} looks at {most}", busy: "Answering…", looking: "Drawing…",
    done: "{tokens} tokens, {reused} of {prompt} prompt tokens reused, ended by {reason}",
    stopped: "Stopped.", failed: "Failed: {message}", picture: "Picture of the mask. {caption}",
    and: "; ", roles: { system: "system", user: "user", assistant: "answer", tool: "tool" },
    masks: { all: "the mask", full: "the mask of layers without a window", sliding: "the mask of layers with a window" },
    reasons: { stop: "its end", length: "the limit of tokens", tool_calls: "a call" },
  },
  zh: {
    tagline: "哪个词元可以看到哪个？向模型提问，然后看一看。", other: "English", otherLanguage: "en",
    settings: "设置", system: "系统消息", temperature: "温度", length: "最多词元数", key: "密钥",
    question: "问题", send: "发送", stop: "停止", anew: "新对话", beside: "并排比较",
    model: "模型", mask: "提示掩码", trained: "{mask}（训练时所用）", conversation: "与 {model} 的对话",
    you: "你", thought: "思考", calls: "调用", former: "在 {mask} 下的回答：{text}", drawn: "显示",
    tokens: "对话的词元", layer: "第 {n} 层",
    hint: "指向一个词元，或用方向键移动，查看它关注哪些词元。",
    earlier: "看到更早的词元", own: "看到同块中更早的词元", later: "看到同块中更晚的词元",
    caption: "掩码 {mask}：{tokens} 个词元，{blocks}",
    noBlocks: "每个词元只看到自己和之前的词元", block: "{first}–{last} 互相可见",
    sees: "{token}（第 {n} 个词元，{role}）看到 {all} 个词元中的 {count} 个：{runs}。",
    looks: "第 {n} 层关注 {most}", busy: "正在回答……", looking: "正在绘制……",
    done: "{tokens} 个词元，{prompt} 个提示词元中复用 {reused} 个，结束原因：{reason}",
    stopped: "已停止。", failed: "失败：{message}", picture: "掩码图。{caption}",
    and: "；", roles: { system: "系统", user: "用户", assistant: "回答", tool: "工具" },
    masks: { all: "掩码", full: "无窗口层的掩码", sliding: "有窗口层的掩码" },
    reasons: { stop: "自然结束", length: "达到词元上限", tool_calls: "调用" },
  },
}

let language = (navigator.language || "en").startsWith("zh") ? "zh" : "en"

// The text of a name, with its values filled in.
function word(name, values = {}) {
  const text = name.split(".").reduce((words, part) => words[part] ?? part, WORDS[language])
  return text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole)
}

// Write the texts of elements that name them.
function translate(root) {
  for (const each of root.querySelectorAll("[data-word]")) each.textContent = word(each.dataset.word)
  for (const each of root.querySelectorAll("[data-label]"))
    each.setAttribute("aria-label", word(each.dataset.label, each.dataset))
}

// A copy of what a template holds.
function made(name) {
  const element = document.getElementById(name).content.firstElementChild.cloneNode(true)
  translate(element)
  return element
}

function element(name, text, className = "") {
  const made = document.createElement(name)
  made.textContent = text
  made.className = className
  return made
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === chosen)))
}
