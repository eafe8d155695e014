// Small things that the pages do without asking the server.
"use strict";
