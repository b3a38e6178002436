// On a phone, and below open settings, the run that was started is out of sight.
() => {
  const status = document.querySelector("#status"), { top, bottom } = status.getBoundingClientRect();
  const isHidden = top < 0 || bottom > innerHeight - 150; // the bar with Start lies over the end of the page
  if (isHidden) status.scrollIntoView({ behavior: "smooth", block: "center" });
}
