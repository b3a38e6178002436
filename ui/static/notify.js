// Tell people who do something else meanwhile how their run is doing: its progress stands in the title of the window, and if
// they want, a sound and a notification say that it has ended.
const KEY = "limner-notify";
const title = document.title;
const box = () => element.querySelector("input");
let before = "";

function sound() {
  const audio = new AudioContext();
  for (const [place, pitch] of Object.entries({ 0: 660, 0.18: 880 }).map((pair) => pair.map(Number))) {
    const tone = audio.createOscillator(), volume = audio.createGain();
    tone.frequency.value = pitch;
    volume.gain.setValueAtTime(0.15, audio.currentTime + place);
    volume.gain.exponentialRampToValueAtTime(0.001, audio.currentTime + place + 0.4);
    tone.connect(volume).connect(audio.destination);
    tone.start(audio.currentTime + place);
    tone.stop(audio.currentTime + place + 0.4);
  }
}

function look() {
  const status = /** @type {HTMLElement | null} */ (document.querySelector("#status [data-status]"));
  const now = status?.dataset.status ?? "";
  const words = status?.querySelector(".pill")?.textContent ?? "";
  const share = status?.parentElement?.querySelector("[role=progressbar]")?.getAttribute("aria-valuenow");
  const isActive = now === "running" || now === "waiting";
  document.title = isActive ? `${share ? `${share} %` : words} · ${title}` : title;
  if (before === "running" && !isActive && localStorage.getItem(KEY) === "yes") {
    sound();
    if (window.Notification?.permission === "granted") new Notification(title, { body: words, icon: "/favicon.ico" });
  }
  before = now;
}

element.addEventListener("change", () => {
  localStorage.setItem(KEY, box().checked ? "yes" : "no");
  if (box().checked) window.Notification?.requestPermission();
});
if (box()) box().checked = localStorage.getItem(KEY) === "yes";
new MutationObserver(look).observe(document.querySelector("#status"), { childList: true, subtree: true, attributes: true });
look();
