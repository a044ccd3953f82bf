// Follows a run: asks the server every few seconds whether a log has changed, and replaces the sections that changed
// without moving what the reader looks at.
(() => {
  "use strict";
  const PERIOD = 2000; // milliseconds
  const SECTIONS = ["diagnosis", "plots"];

  const bar = document.createElement("div");
  bar.id = "live";
  bar.style.cssText =
    "font-size:.875rem;padding:.4rem .75rem;margin:0 0 1rem;border:1px solid var(--line);border-radius:6px;" +
    "background:var(--card);color:var(--fg);overflow-wrap:anywhere;font-variant-numeric:tabular-nums";
  document.querySelector("main").prepend(bar);

  let shown = null; // stamp of what the page shows
  const latest = new Map(); // HTML of each section as the server sent it
  let lost = null; // the line that is shown while the server does not answer

  // What this script changes above the section being read must not move it. The browser's own anchor is the topmost thing
  // in sight, which may be the end of a section that is replaced.
  document.documentElement.style.overflowAnchor = "none";

  function inPlace(change) {
    const sections = [...document.querySelectorAll("main > section")];
    const reading = sections.find((section) => section.getBoundingClientRect().bottom > innerHeight / 3);
    const before = reading?.getBoundingClientRect().top;
    change();
    if (reading) scrollBy({ top: reading.getBoundingClientRect().top - before, behavior: "instant" });
  }

  function say(runs) {
    bar.replaceChildren(
      ...runs.map(({ name, state, text }) => {
        const line = document.createElement("div");
        line.dataset.state = state;
        const title = document.createElement("bdi");
        title.style.fontWeight = "600";
        title.textContent = name;
        line.append(title, ` ${text}`);
        return line;
      }),
    );
  }

  const selecting = (section) => !getSelection().isCollapsed && section.contains(getSelection().anchorNode);
  const focusable = (section) => [...section.querySelectorAll("a[href], button, input, select, summary, [tabindex]")];

  // Replaces a section. Opened details stay open, and the focus stays.
  function swap(section, next) {
    const opened = [...section.querySelectorAll("details")].map((details) => details.open);
    const focus = focusable(section).indexOf(document.activeElement);
    section.replaceChildren(...document.importNode(next, true).childNodes);
    section.querySelectorAll("details").forEach((details, i) => {
      if (i < opened.length) details.open = opened[i];
    });
    focusable(section)[focus]?.focus({ preventScroll: true });
  }

  async function update(response) {
    const next = new DOMParser().parseFromString(await response.text(), "text/html");
    const [here, data] = ["completions", "completions-data"].map((id) => document.getElementById(id));
    const fresh = next.getElementById("completions-data");
    if (!data && fresh) {
      location.reload(); // the first step is there
    } else if (!data) {
      document.querySelector("main > p").textContent = next.querySelector("main > p").textContent;
    } else if (fresh) {
      let late = false; // a section in which the reader is selecting text is replaced next time
      for (const id of SECTIONS) {
        const [section, other] = [document.getElementById(id), next.getElementById(id)];
        if (!other || latest.get(id) === other.innerHTML) continue;
        if (selecting(section)) late = true;
        else {
          latest.set(id, other.innerHTML);
          inPlace(() => swap(section, other));
        }
      }
      if (data.textContent !== fresh.textContent) {
        data.textContent = fresh.textContent;
        here.dispatchEvent(new Event("completions-changed"));
      }
      if (late) return;
    }
    shown = response.headers.get("ETag");
  }

  async function ask(path) {
    try {
      return await fetch(path, { cache: "no-store" });
    } catch {
      if (!lost) {
        lost = document.createElement("div");
        lost.textContent = `No answer since ${new Date().toLocaleTimeString()}: pacedrl watch has ended. The page stays as it was.`;
        bar.prepend(lost);
      }
      return null;
    }
  }

  async function poll() {
    try {
      const answer = document.hidden ? null : await ask("/stamp");
      if (!answer) return;
      lost = null;
      const { stamp, runs } = await answer.json();
      if (bar.getBoundingClientRect().bottom > 0) say(runs);
      else inPlace(() => say(runs));
      const page = `"${stamp}"` === shown ? null : await ask("/");
      if (page) await update(page);
    } finally {
      setTimeout(poll, PERIOD);
    }
  }
  poll();
})();
