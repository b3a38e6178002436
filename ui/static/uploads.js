// Cancels uploads, which Gradio's page cannot do: its requests go through `fetch`, and those that send files get a signal.
const button = element.querySelector(".cancel-upload");
const running = new Set();
const send = window.fetch;

const show = () => { button.hidden = !running.size; };

window.fetch = (input, options = {}) => {
  const url = new URL(input instanceof Request ? input.url : input, location.href);
  if (!url.pathname.endsWith("/gradio_api/upload")) return send(input, options);
  const control = new AbortController();
  running.add(control);
  show();
  return send(input, { ...options, signal: control.signal }).finally(() => {
    running.delete(control);
    show();
  });
};
button.addEventListener("click", () => {
  for (const control of running) control.abort();
});
