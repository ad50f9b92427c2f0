// What the page says, in each of its languages; `say` writes it, and `speak` changes the language of all that was said.

const WORDS = {
  en: {
    language: "English", languages: "Language",
    lead: "Give one or more of these. Files can be dropped anywhere, pictures pasted.",
    text: "Text", image: "Picture", speech: "Recording",
    ask: "Ask", asking: "Asking …", first: "The answer appears here.",
    file: "Choose a file", camera: "Camera", record: "Record", stop: "Stop", remove: "Remove", take: "Take the picture",
    cancel: "Cancel", writing: "Write here", preview: "Preview of what is given", recorded: "recorded just now",
    taken: "taken just now",
    version: "Version {version}, trained on dataset {dataset}", noVersion: "Trained on dataset {dataset}",
    answer: "Answer", part: "Part", probability: "Probability", right: "Probability that it is right: {share}",
    none: "none", withheld: "withheld", abstained: "No answer: the best one is not probable enough.",
    best: "The most probable answers", of: "{name}: the most probable answers",
    subsets: "What each input contributed", inputs: "Given",
    subsetsNote: "The answers to each part of what was given. Bold: the same answer as to all of it.",
    soFar: "So far: {answer}", soFarSure: "So far: {answer} ({share})",
    isRight: "Right", isWrong: "Wrong", rightAnswer: "The right answer, if you know it", send: "Send",
    thanks: "Noted, thank you.", notNoted: "This could not be noted.",
    nothing: "Give at least one input first.", empty: "{name} is empty.", type: "{name} fits none of the inputs.",
    large: "{name} has {size}; the model takes {most} at most.",
    together: "All inputs together are too large: a request takes {most} at most.",
    insecure: "Microphone and camera work on localhost and over https only. Files can be given all the same.",
    denied: "The browser was not allowed to use it: allow it in the browser's settings of this page.",
    missing: "No such device was found.", device: "The device does not work: {why}",
    0: "The server does not answer: is it still running?",
    400: "The model cannot read this.", 413: "The request is too large for the server.",
    503: "The server has too much to do: try again in a moment.", 500: "The model failed.",
    refused: "The server refused the request ({status}).",
  },
  zh: {
    language: "中文", languages: "语言",
    lead: "请给出下面的一项或多项。文件可以拖放到页面任意处，图片可以粘贴。",
    text: "文字", image: "图片", speech: "录音",
    ask: "提问", asking: "正在回答……", first: "答案会显示在这里。",
    file: "选择文件", camera: "拍照", record: "录音", stop: "停止", remove: "移除", take: "拍摄",
    cancel: "取消", writing: "在此输入", preview: "已给内容的预览", recorded: "刚刚录制", taken: "刚刚拍摄",
    version: "版本 {version}，训练数据集 {dataset}", noVersion: "训练数据集 {dataset}",
    answer: "答案", part: "部分", probability: "概率", right: "答案正确的概率：{share}",
    none: "无", withheld: "未作答", abstained: "没有答案：最可能的答案概率不够高。",
    best: "最可能的答案", of: "{name}：最可能的答案",
    subsets: "各项输入的贡献", inputs: "输入",
    subsetsNote: "只给出部分输入时的答案。粗体：与全部输入的答案相同。",
    soFar: "目前：{answer}", soFarSure: "目前：{answer}（{share}）",
    isRight: "正确", isWrong: "错误", rightAnswer: "正确答案（如果知道）", send: "发送",
    thanks: "已记录，谢谢。", notNoted: "未能记录。",
    nothing: "请先给出至少一项输入。", empty: "{name} 是空的。", type: "{name} 不适合任何一项输入。",
    large: "{name} 大小为 {size}，模型最多接受 {most}。",
    together: "所有输入加起来太大：一次请求最多 {most}。",
    insecure: "麦克风和相机只能在 localhost 或 https 下使用；仍然可以选择文件。",
    denied: "浏览器未获准使用该设备：请在浏览器的本页设置中允许。",
    missing: "没有找到这种设备。", device: "设备无法使用：{why}",
    0: "服务器没有响应：它还在运行吗？",
    400: "模型无法读取这些输入。", 413: "请求太大，服务器不接受。",
    503: "服务器太忙：请稍后再试。", 500: "模型出错了。",
    refused: "服务器拒绝了请求（{status}）。",
  },
};
export const LANGUAGES = Object.keys(WORDS);
let language = LANGUAGES.find((known) => navigator.language.toLowerCase().startsWith(known)) ?? "en";

// Words for a key; what is no key (a modality of somebody's own) is said as it is. Values may be functions, called in
// the language of the moment.
function words(key, values) {
  return (WORDS[language][key] ?? String(key)).replace(/{(\w+)}/g, (_, name) => {
    const value = values[name];
    return typeof value === "function" ? value() : value;
  });
}

function write(node) {
  for (const [target, [key, values]] of Object.entries(node.said)) {
    if (target === "text") node.textContent = words(key, values);
    else node.setAttribute(target, words(key, values));
  }
}

// Writes words as the text of an element, or as an attribute of it.
export function say(node, key, values = {}, target = "text") {
  node.said = { ...node.said, [target]: [key, values] };
  node.toggleAttribute("data-said", true);
  write(node);
  return node;
}

export function speak(chosen = language) {
  language = chosen;
  document.documentElement.lang = language;
  document.querySelectorAll("[data-said]").forEach(write);
}

export const languageName = (code) => WORDS[code].language;
export const spoken = () => language;
export const word = (key) => () => words(key, {});
export const share = (value) => () => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 }).format(value);
export const bytes = (value) => () => {
  const [unit, size] = value < 2 ** 20 ? ["kilobyte", 2 ** 10] : ["megabyte", 2 ** 20];
  return new Intl.NumberFormat(language, { style: "unit", unit, maximumFractionDigits: 1 }).format(value / size);
};

// An element with a class, and children.
export function make(tag, name = "", ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...children);
  return node;
}
