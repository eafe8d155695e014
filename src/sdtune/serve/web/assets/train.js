// What the pages of trainings do in the browser without asking the server.
"use strict";

// A log stays at its end, unless somebody has scrolled up in it.
window.sdtuneLogEnd = (id) => {
  const log = document.getElementById(id);
  if (log && (!log.dataset.seen || log.scrollHeight - log.scrollTop - log.clientHeight < 120)) {
    log.dataset.seen = "1";
    setTimeout(() => { log.scrollTop = log.scrollHeight; }, 80); // its new lines come a moment later
  }
};

// The slider of the previews: how far it goes, and where it stands.
window.sdtuneSlide = (most, at) => {
  const slider = document.getElementById("timeline-step");
  if (slider) {
    slider.max = most;
    slider.value = at;
  }
};
