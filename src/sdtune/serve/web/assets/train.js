// What the pages of trainings do in the browser without asking the server.
"use strict";

// A log stays at its end, unless somebody has scrolled in it.
window.sdtuneLogEnd = (id) => {
  const log = document.getElementById(id);
  if (!log || (log.dataset.at && Math.abs(log.scrollTop - log.dataset.at) > 4)) return;
  setTimeout(() => { // its new lines come a moment later
    log.scrollTop = log.scrollHeight;
    log.dataset.at = log.scrollTop;
  }, 250);
};

// The slider of the previews: how far it goes, and where it stands.
window.sdtuneSlide = (most, at) => {
  const slider = document.getElementById("timeline-step");
  if (slider) {
    slider.max = most;
    slider.value = at;
  }
};
