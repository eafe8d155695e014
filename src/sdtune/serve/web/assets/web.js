// Small things that the pages do without asking the server.
"use strict";

// A log stays at its end, unless somebody has scrolled up in it.
window.sdtuneLogEnd = (id) => {
  const log = document.getElementById(id);
  if (log && (!log.dataset.seen || log.scrollHeight - log.scrollTop - log.clientHeight < 120)) {
    log.dataset.seen = "1";
    log.scrollTop = log.scrollHeight;
  }
};
