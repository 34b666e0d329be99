"use strict";
(() => {
  const note = document.getElementById("connection");
  const run = document.body.dataset.run;
  let over = false;
  let last = new Date();
  const time = (at) => at.toLocaleTimeString();
  const say = (tone, text) => {
    note.className = tone;
    if (note.textContent !== text) note.textContent = text;
  };
  const put = (id, part) => {
    const place = document.getElementById(id);
    if (!place) return;
    const before = place.querySelector(".scroll");
    const [left, top] = before ? [before.scrollLeft, before.scrollTop] : [0, 0];
    // Every part was escaped by the server, and the policy of this page lets nothing run that came with one.
    place.innerHTML = part;
    const after = place.querySelector(".scroll");
    if (after) after.scrollTo(left, top);
  };
  const connect = () => {
    const source = new EventSource("live");
    source.addEventListener("parts", (event) => {
      const news = JSON.parse(event.data);
      if (news.run !== run) {
        location.reload();
        return;
      }
      last = new Date();
      document.title = news.title;
      for (const [id, part] of Object.entries(news.parts)) put(id, part);
      say("", `Live, as of ${time(last)}.`);
    });
    source.addEventListener("end", (event) => {
      over = true;
      source.close();
      const report = JSON.parse(event.data).report;
      const where = report ? ` The report is ${report}.` : "";
      say("mixed", `The run has ended, and varcas-guard with it, at ${time(new Date())}. This page stays as it was then.${where}`);
    });
    source.addEventListener("error", () => {
      if (over) return;
      say("bad", `varcas-guard has not answered since ${time(last)}: it was killed, or the connection to it is gone. This page shows what was known then, and tries again.`);
      // A refusal ends the source for good; a lost connection it takes up by itself.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
    });
  };
  connect();
})();
