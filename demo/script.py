"""The page's own script: what Gradio has no component for. It hangs on the document, since components come and go."""

from __future__ import annotations

from typing import Final

SCRIPT: Final = """<script>
(() => {
  const field = () => document.querySelector(".ls-field");
  const slider = () => document.querySelector("#slice input[type=range]");

  const mark = (slice) => {
    const plot = field();
    if (!plot) return;
    const count = Number(plot.dataset.count);
    const said = JSON.parse(plot.dataset.said);
    plot.querySelector(".ls-cursor").style.left = `${100 * (slice - 0.5) / count}%`;
    plot.setAttribute("aria-valuenow", slice);
    const values = said.values[slice - 1] || [];
    const numbers = values.map((p, i) => `${said.names[i]} ${p === null ? "not run" : p.toFixed(1) + " %"}`);
    plot.setAttribute("aria-valuetext", [`slice ${slice} of ${count}`, ...numbers].join(", "));
  };

  const go = (slice) => {
    const input = slider();
    if (!input || input.disabled) return;
    input.value = Math.min(Math.max(slice, Number(input.min)), Number(input.max));
    input.dispatchEvent(new Event("input", { bubbles: true }));
    mark(Number(input.value));
  };

  const at = (plot, x) => {
    const box = plot.getBoundingClientRect();
    return Math.floor((x - box.left) / box.width * Number(plot.dataset.count)) + 1;
  };

  document.addEventListener("input", (event) => {
    if (event.target.closest("#slice")) mark(Number(event.target.value));
  });

  document.addEventListener("pointerdown", (event) => {
    const plot = event.target.closest(".ls-field");
    if (!plot) return;
    plot.focus();
    plot.setPointerCapture(event.pointerId);
    go(at(plot, event.clientX));
  });
  document.addEventListener("pointermove", (event) => {
    const plot = event.target.closest(".ls-field");
    if (plot && plot.hasPointerCapture(event.pointerId)) go(at(plot, event.clientX));
  });

  document.addEventListener("keydown", (event) => {
    const plot = event.target.closest(".ls-field");
    if (!plot) return;
    const now = Number(plot.getAttribute("aria-valuenow"));
    const count = Number(plot.dataset.count);
    const far = Math.max(2, Math.round(count / 10));
    const to = {
      ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1,
      PageUp: now + far, PageDown: now - far, Home: 1, End: count,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    go(to);
  });

  const sort = (button) => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      // What has no value stays at the end, whichever way is up.
      if (x === "" || y === "") return (x === "") - (y === "");
      const less = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -less : less;
    };
    body.append(...[...body.rows].sort(order));
  };

  // What Gradio says of an upload that failed goes by itself after a few seconds, read or not; this stays until it is
  // closed or a file is kept. 507 is `demo.guard.FullDisk`, whose text is for people.
  const say = (text) => {
    document.querySelector(".ls-upload")?.remove();
    if (!text) return;
    const note = document.createElement("div");
    note.className = "ls-alert ls-upload";
    note.setAttribute("role", "alert");
    const title = document.createElement("strong");
    title.textContent = "The file could not be kept";
    const words = document.createElement("p");
    words.textContent = text;
    const close = document.createElement("button");
    close.type = "button";
    close.setAttribute("aria-label", "Close");
    close.textContent = "\u00d7";
    close.addEventListener("click", () => say(""));
    note.append(title, words, close);
    document.querySelector(".gradio-container").append(note);
  };
  const asked = window.fetch;
  window.fetch = async (...request) => {
    const answer = await asked(...request);
    const to = new URL(request[0]?.url ?? request[0], document.baseURI);
    if (to.pathname.endsWith("/upload")) say(answer.status === 507 ? await answer.clone().text() : "");
    return answer;
  };

  document.addEventListener("click", (event) => {
    const jump = event.target.closest("[data-slice]");
    if (jump) go(Number(jump.dataset.slice));
    const head = event.target.closest("th button");
    if (head) sort(head);
  });
})();
</script>"""
