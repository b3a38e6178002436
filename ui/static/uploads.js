// Shows the progress of uploads and cancels them, which Gradio's page cannot do. Its requests go through `fetch`, which
// does not tell what was sent; those with files are sent by XMLHttpRequest instead.
/** @type {Map<XMLHttpRequest, number[]>} */
const running = new Map(); // each request: the bytes that it has sent, and all of them
const send = window.fetch;

function show() {
  const sums = [...running.values()].reduce(([sent, all], [more, total]) => [sent + more, all + total], [0, 0]);
  const share = sums[1] ? sums[0] / sums[1] : 0;
  element.querySelector(".running-upload").hidden = !running.size;
  element.querySelector("progress").value = share;
  element.querySelector(".share").textContent = `${Math.floor(100 * share)} %`;
}

window.fetch = (input, options = {}) => {
  const url = new URL(input instanceof Request ? input.url : input, location.href);
  if (!url.pathname.endsWith("/gradio_api/upload")) return send(input, options);
  const request = new XMLHttpRequest();
  running.set(request, [0, 0]);
  show();
  return new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => {
      running.set(request, [event.loaded, event.total]);
      show();
    };
    request.onload = () => resolve(new Response(request.responseText, { status: request.status, statusText: request.statusText }));
    request.onerror = () => reject(new TypeError("Failed to fetch"));
    request.onabort = () => reject(new DOMException("The upload was canceled.", "AbortError"));
    request.onloadend = () => {
      running.delete(request);
      show();
    };
    request.open(options.method ?? "POST", url);
    for (const [name, value] of new Headers(options.headers)) request.setRequestHeader(name, value);
    request.send(/** @type {FormData} */ (options.body));
  });
};
element.querySelector(".cancel-upload").addEventListener("click", () => {
  for (const request of [...running.keys()]) request.abort();
});
