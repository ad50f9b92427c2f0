// Microphone and camera. Browsers record compressed formats that not every server reads, so the samples themselves are
// taken and written as WAV.
import { make, say } from "./words.js";

export const hasDevices = Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

// Starts to record; resolves to a function that stops and gives the WAV. `heard` is told the seconds so far, the new
// samples (16 bits) and their rate.
export async function record(heard) {
  // Little is done to the sound: models are trained on recordings, not on what a telephone makes of them.
  const sound = { channelCount: 1, echoCancellation: false, noiseSuppression: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio: sound });
  const context = new AudioContext();
  const parts = [];
  let frames = 0;
  const end = () => {
    stream.getTracks().forEach((track) => track.stop());
    return context.close();
  };
  try {
    await context.audioWorklet.addModule("recorder.js");
    const node = new AudioWorkletNode(context, "recorder");
    node.port.onmessage = ({ data }) => {
      parts.push(Int16Array.from(data, (sample) => Math.round(32767 * Math.max(-1, Math.min(1, sample)))));
      frames += data.length;
      heard(frames / context.sampleRate, parts.at(-1), context.sampleRate);
    };
    context.createMediaStreamSource(stream).connect(node).connect(context.destination); // silent, but it keeps it going
    await context.resume();
  } catch (error) {
    await end();
    throw error;
  }
  return async () => {
    await end();
    return wav(parts, frames, context.sampleRate);
  };
}

// Mono, 16 bits.
function wav(parts, frames, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * frames));
  const text = (at, letters) => [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * frames, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channel
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * frames, true);
  let at = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(at, sample, true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

// Shows what the camera sees; resolves to a JPEG, or to null where the person thought better of it.
export async function photograph() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  const video = Object.assign(make("video"), { srcObject: stream, muted: true, playsInline: true });
  const take = say(make("button", "main"), "take");
  const cancel = say(make("button"), "cancel");
  take.disabled = true;
  const dialog = say(make("dialog", "", video, make("div", "row", take, cancel)), "camera", {}, "aria-label");
  document.body.append(dialog);
  dialog.showModal();
  video.onloadeddata = () => {
    take.disabled = false;
    take.focus();
  };
  try {
    video.play().catch(() => {}); // closed before it began
    return await new Promise((resolve) => {
      take.onclick = () => {
        const canvas = Object.assign(make("canvas"), { width: video.videoWidth, height: video.videoHeight });
        canvas.getContext("2d").drawImage(video, 0, 0);
        canvas.toBlob(resolve, "image/jpeg", 0.95);
      };
      cancel.onclick = () => resolve(null);
      dialog.onclose = () => resolve(null); // Esc
    });
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    dialog.remove();
  }
}
