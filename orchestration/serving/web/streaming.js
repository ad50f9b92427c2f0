// Answers while the microphone still runs (GET stream). Whatever goes wrong here, the recording is asked in the end.

const EVERY = 0.5; // seconds of speech
const PART = 0.1; // that are sent together

// Sends samples as they come. `told` is given each answer; `row` holds the other inputs.
export function streamed(input, rate, row, told) {
  const socket = new WebSocket(new URL("stream", location.href.replace(/^http/, "ws")));
  let parts = [];
  let count = 0;
  const flush = () => {
    if (socket.readyState !== WebSocket.OPEN || !count) return;
    socket.send(new Blob(parts));
    [parts, count] = [[], 0];
  };
  socket.onopen = () => {
    socket.send(JSON.stringify({ input, rate, every: EVERY, row }));
    flush();
  };
  socket.onmessage = ({ data }) => {
    const { answer } = JSON.parse(data);
    if (answer) told(answer);
  };
  return {
    send(samples) {
      parts.push(samples);
      count += samples.length;
      if (count >= PART * rate) flush();
    },
    close: () => socket.close(),
  };
}
