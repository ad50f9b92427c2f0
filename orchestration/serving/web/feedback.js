// Two buttons below an answer that is logged: whether it is right, and if not, what would have been (POST feedback).
import { make, say } from "./words.js";

export function feedbackOn(answerId) {
  const told = make("span", "muted");
  told.setAttribute("role", "status");
  const answer = Object.assign(make("input"), { type: "text", maxLength: 20000 });
  const [right, wrong, send] = ["isRight", "isWrong", "send"].map((key) => say(Object.assign(make("button"), { type: "button" }), key));
  const more = make("div", "row", say(answer, "rightAnswer", {}, "placeholder"), send);
  say(answer, "rightAnswer", {}, "aria-label");
  more.hidden = true;

  async function mark(verdict) {
    [right, wrong].forEach((one) => one.setAttribute("aria-pressed", one === (verdict === "right" ? right : wrong)));
    more.hidden = verdict === "right";
    const body = JSON.stringify({ answer_id: answerId, verdict, answer: verdict === "wrong" && answer.value.trim() ? answer.value : null });
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const response = await fetch("feedback", request).catch(() => ({ status: 0 }));
    if (response.ok) say(told, "thanks");
    else say(told, [0, 503].includes(response.status) ? response.status : "notNoted");
  }

  right.onclick = () => mark("right");
  wrong.onclick = () => mark("wrong");
  send.onclick = () => mark("wrong");
  return make("div", "feedback", make("div", "row", right, wrong, told), more);
}
