// The browser of sampled completions. What a run wrote reaches the page through textContent alone.
(() => {
  "use strict";
  const ROW = 46; // pixels, as in completions.css
  const SNIPPET = 240; // characters of a text looked at for its line in the list
  const MARKS = { right: "✓", wrong: "✗", between: "◐", none: "–", error: "!" };
  const LABELS = { right: "right", wrong: "wrong", between: "in between", none: "no verdict", error: "verifier failed" };
  // What cannot be seen, or changes how its neighbours are shown; but for line ends, tabs, and U+FE0F after an emoji.
  const UNSEEN =
    /((?:(?![\n\t]|(?<=\p{Extended_Pictographic})\uFE0F)[\p{Cc}\p{Cs}\p{Default_Ignorable_Code_Point}\u2028\u2029\uFFF9-\uFFFB])+|(?<=\p{M}{6})\p{M}+)/gu;
  const CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
  ).split(" ");

  const root = document.querySelector("#completions .cb");
  const form = root.querySelector("form");
  const fields = form.elements;
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const list = part("list");
  const space = part("space");

  let info; // runs, shown, total, errors
  let rows; // columns, each with a value a row
  let lower; // of each row what the search looks through; made when first needed
  let view = []; // rows that pass the filters, in order
  let current = -1; // the row whose details are shown

  // ---- Texts ----

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function symbols(run) {
    if (/^\p{M}/u.test(run) && !/^\p{Default_Ignorable_Code_Point}/u.test(run)) return `+${[...run].length} marks`;
    const symbol = (character) => {
      const code = character.codePointAt(0);
      if (code < CONTROLS.length) return CONTROLS[code];
      return code === 0x7f ? "DEL" : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    };
    return Array.from(run, symbol).join(" ");
  }

  function appendVisible(parent, text) {
    text.split(UNSEEN).forEach((piece, i) => {
      if (i % 2) parent.append(element("span", "cb-unseen", symbols(piece)));
      else if (piece) parent.append(piece);
    });
  }

  // A text in a box of its own direction; occurrences of what is searched for are marked.
  function box(tag, className, text, wanted = "") {
    const made = element(tag, `cb-text ${className}`);
    made.dir = "auto";
    const pattern = wanted && new RegExp(`(${wanted.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")})`, "giu");
    (wanted ? text.split(pattern) : [text]).forEach((piece, i) => {
      const inside = i % 2 ? made.appendChild(element("mark")) : made;
      appendVisible(inside, piece);
    });
    return made;
  }

  const snippet = (text) => text.slice(0, SNIPPET).replace(/[\uD800-\uDBFF]$/, "").replace(/\s+/g, " ");
  const plain = (prompt) =>
    Array.isArray(prompt) ? prompt.map(([role, text]) => `${role}: ${text ?? ""}`).join("\n") : (prompt ?? "");
  const asked = (prompt) => (Array.isArray(prompt) ? (prompt.at(-1)?.[1] ?? "") : (prompt ?? ""));
  const figure = (value) => (value === null ? "–" : String(Number(value.toFixed(3))));
  const count = (value) => value.toLocaleString("en");

  // ---- Rows ----

  const text = (name, i) => rows.texts[rows[name][i]];
  const rewardKind = (i) => {
    const reward = rows.reward[i];
    return reward === null ? "none" : reward === 1 ? "right" : reward === 0 ? "wrong" : "between";
  };
  const failed = (i) => text("error", i) !== null;
  const verdict = (i) => (failed(i) ? "error" : rewardKind(i));
  const name = (i) => `${info.runs[rows.run[i]]}:${rows.n[i]}`;
  const find = (wanted) => {
    const colon = wanted.lastIndexOf(":");
    const run = info.runs.indexOf(wanted.slice(0, colon));
    const n = Number(wanted.slice(colon + 1));
    return rows.n.findIndex((line, i) => line === n && rows.run[i] === run);
  };

  async function unpack(data) {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  async function load() {
    const next = JSON.parse(document.getElementById("completions-data").textContent);
    const unpacked = next.shown ? await unpack(next.gzip) : { n: [], texts: [] };
    const chosen = current < 0 ? null : name(current);
    const top = view.length && list.scrollTop > 0 ? name(view[Math.floor(list.scrollTop / ROW)]) : null;
    const offset = list.scrollTop % ROW;
    [info, rows, lower] = [next, unpacked, null];
    options("run", info.runs.map((run, i) => [i, run]));
    options("task", distinct("task"));
    options("finish", distinct("finish_reason"));
    part("run-field").hidden = info.runs.length < 2;
    note();
    filter();
    if (chosen !== null) {
      current = find(chosen);
      if (current < 0 && view.length) select(0);
    }
    const place = top === null ? -1 : view.indexOf(find(top));
    if (place >= 0) list.scrollTop = place * ROW + offset;
    draw();
  }

  function distinct(column) {
    return [...new Set(rows[column])].filter((i) => rows.texts[i] !== null).map((i) => [rows.texts[i], rows.texts[i]]);
  }

  function options(field, pairs) {
    const menu = fields[field];
    const chosen = menu.value;
    menu.replaceChildren(menu.options[0]);
    for (const [value, label] of pairs) {
      const option = element("option");
      option.value = value;
      appendVisible(option, snippet(label).slice(0, 80));
      menu.append(option);
    }
    menu.value = chosen;
    if (menu.selectedIndex < 0) menu.selectedIndex = 0;
  }

  function note() {
    const left = info.total - info.shown;
    const [errors, allErrors] = info.errors;
    part("note").hidden = !left;
    part("note").textContent = `This page holds ${count(info.shown)} of the ${count(info.total)} sampled completions: ${
      allErrors ? `${errors === allErrors ? "all" : `${count(errors)} of`} ${count(allErrors)} that the verifier failed on, and ` : ""
    }right and wrong ones spread over the steps. samples.jsonl in the run's folder has them all.`;
  }

  // ---- Filters ----

  const searched = () => fields.search.value.toLowerCase();

  function haystacks() {
    const shared = rows.texts.map((value) => plain(value).toLowerCase());
    return rows.n.map((_, i) => [
      shared[rows.prompt[i]],
      (rows.completion[i] ?? "").toLowerCase(),
      shared[rows.answer[i]],
    ]);
  }

  function inRange(column, field) {
    const [low, high] = [fields[`${field}-from`].value, fields[`${field}-to`].value];
    if (low === "" && high === "") return null;
    const [least, most] = [low === "" ? -Infinity : Number(low), high === "" ? Infinity : Number(high)];
    return (i) => rows[column][i] !== null && rows[column][i] >= least && rows[column][i] <= most;
  }

  function tests() {
    const { run, task, reward, error, finish, prompt } = fields;
    const wanted = prompt.value.toLowerCase();
    return [
      run.value !== "" && ((i) => rows.run[i] === Number(run.value)),
      task.value !== "" && ((i) => text("task", i) === task.value),
      reward.value !== "" && ((i) => rewardKind(i) === reward.value),
      error.value !== "" && ((i) => failed(i) === (error.value === "failed")),
      finish.value !== "" && ((i) => text("finish_reason", i) === finish.value),
      wanted !== "" && ((i) => (text("key", i) ?? "").startsWith(wanted) || (lower ??= haystacks())[i][0].includes(wanted)),
      inRange("step", "step"),
      inRange("accuracy_estimate", "estimate"),
    ].filter(Boolean);
  }

  // Rows without a value come last; equal ones in the order of the log.
  function sorted(places) {
    const by = (value, sign) => {
      const key = places.map((i) => value(i));
      const order = [...places.keys()].sort((a, b) => {
        if (key[a] === null || key[b] === null) return (key[a] === null) - (key[b] === null) || a - b;
        return sign * (key[a] - key[b]) || a - b;
      });
      return order.map((k) => places[k]);
    };
    const column = (name) => (i) => rows[name][i];
    const gap = (i) => {
      const [estimate, observed] = [rows.accuracy_estimate[i], rows.observed_accuracy[i]];
      return estimate === null || observed === null ? null : Math.abs(estimate - observed);
    };
    switch (fields.sort.value) {
      case "newest": return by(column("step"), -1);
      case "oldest": return by(column("step"), 1);
      case "reward-low": return by(column("reward"), 1);
      case "reward-high": return by(column("reward"), -1);
      case "estimate-low": return by(column("accuracy_estimate"), 1);
      case "estimate-high": return by(column("accuracy_estimate"), -1);
      case "gap": return by(gap, -1);
      default: return by((i) => (rows.completion[i] ?? "").length, -1);
    }
  }

  function filter() {
    const all = tests();
    const wanted = searched();
    if (wanted) {
      lower ??= haystacks();
      all.push((i) => lower[i].some((part) => part.includes(wanted)));
    }
    view = sorted([...rows.n.keys()].filter((i) => all.every((test) => test(i))));
    const active = all.length - (wanted ? 1 : 0);
    part("active").textContent = active ? ` (${active} on)` : "";
    part("count").textContent = `${count(view.length)} of ${count(info.shown)} completions`;
    space.style.height = `${view.length * ROW}px`;
  }

  // After the reader changed a filter: from the top, with the completion chosen kept where it still passes.
  function refilter() {
    filter();
    list.scrollTop = 0;
    const place = view.indexOf(current);
    if (place >= 0) reveal(place);
    else if (view.length) select(0);
    draw();
    details();
  }

  // ---- List ----

  function line(place) {
    const i = view[place];
    const kind = verdict(i);
    const made = element("div", `cb-row cb-${kind}`);
    made.id = `cb-row-${i}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", String(i === current));
    made.setAttribute("aria-setsize", view.length);
    made.setAttribute("aria-posinset", place + 1);
    made.style.top = `${place * ROW}px`;
    made.dataset.place = place;
    made.dataset.name = name(i);
    const mark = element("span", "cb-mark", MARKS[kind]);
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", LABELS[kind]);
    const completion = snippet(rows.completion[i] ?? "");
    made.append(
      mark,
      box("span", "cb-line cb-asked", snippet(asked(text("prompt", i)))),
      element("span", "cb-number", `step ${figure(rows.step[i])}`),
      completion.trim() ? box("span", "cb-line", completion) : element("span", "cb-line cb-asked", "(nothing)"),
      element("span", "cb-number", `est ${rows.accuracy_estimate[i]?.toFixed(2) ?? "–"}`),
    );
    return made;
  }

  function draw() {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - 8, 0);
    const last = Math.min(first + Math.ceil(list.clientHeight / ROW) + 16, view.length);
    const lines = [];
    for (let place = first; place < last; place++) lines.push(line(place));
    space.replaceChildren(...lines);
    const chosen = document.getElementById(`cb-row-${current}`);
    if (chosen) list.setAttribute("aria-activedescendant", chosen.id);
    else list.removeAttribute("aria-activedescendant");
  }

  function reveal(place) {
    const [top, bottom] = [place * ROW, (place + 1) * ROW];
    if (top < list.scrollTop) list.scrollTop = top;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
  }

  function select(place) {
    current = view[place];
    reveal(place);
    draw();
    details();
  }

  // By the reader, so that the address names it.
  function choose(place) {
    if (!view.length) return;
    select(Math.max(0, Math.min(place, view.length - 1)));
    history.replaceState(null, "", `#completion=${encodeURIComponent(name(current))}`);
  }

  const step = (by) => choose(view.indexOf(current) + by);

  function follow() {
    const match = /^#completion=(.+)$/.exec(location.hash);
    if (!match) return false;
    let wanted = match[1];
    try {
      wanted = decodeURIComponent(wanted);
    } catch {
      // a name with a bare % in it, typed by hand
    }
    const found = find(wanted);
    if (found < 0) {
      part("count").replaceChildren(box("span", "", `Completion ${wanted} is not in this page; look in samples.jsonl.`));
    } else {
      if (!view.includes(found)) {
        form.reset();
        filter();
      }
      select(view.indexOf(found));
    }
    root.closest("section").scrollIntoView();
    return found >= 0;
  }

  // ---- Details ----

  function details() {
    const shown = view.includes(current);
    part("detail").hidden = !shown;
    if (!shown) return;
    const [i, kind, wanted] = [current, verdict(current), fields.search.value];
    part("badge").className = `cb-badge cb-${kind}`;
    part("badge").textContent = `${MARKS[kind]} ${LABELS[kind]}`;
    part("where").replaceChildren(
      ...(info.runs.length > 1 ? [box("b", "", info.runs[rows.run[i]])] : []),
      element("span", "cb-step", `step ${figure(rows.step[i])}`),
      box("span", "", text("task", i) ?? ""),
      box("span", "cb-key", text("key", i) ?? ""),
    );
    const prompt = text("prompt", i);
    const messages = Array.isArray(prompt) ? prompt : [[null, prompt]];
    part("prompt").replaceChildren(...messages.flatMap(([role, said]) => message(role, said ?? "", "Prompt", wanted)));
    part("completion").replaceChildren(...message(null, rows.completion[i] ?? "", "Completion", wanted));
    part("verdict").replaceChildren(...judgement(i, wanted));
  }

  function message(role, said, label, wanted) {
    const shown = said ? box("div", "cb-box", said, wanted) : element("div", "cb-box cb-empty", "(nothing)");
    shown.tabIndex = 0;
    shown.setAttribute("role", "region");
    shown.setAttribute("aria-label", label);
    return role === null ? [shown] : [box("div", "cb-role", role), shown];
  }

  function judgement(i, wanted) {
    const term = (label, ...values) => {
      const pair = element("div");
      const value = element("dd");
      value.append(...values);
      pair.append(element("dt", "", label), value);
      return pair;
    };
    const [error, answer, finish] = [text("error", i), text("answer", i), text("finish_reason", i)];
    const [observed, estimate] = [rows.observed_accuracy[i], rows.accuracy_estimate[i]];
    const parts = Object.entries(rows.parts[i]);
    const marked = (className, pair) => {
      pair.firstChild.prepend(element("i", className));
      return pair;
    };
    const long = (value, className) => {
      const shown = box("div", `cb-box ${className}`, value, wanted);
      shown.tabIndex = 0;
      return shown;
    };
    return [
      term("Reward", figure(rows.reward[i])),
      ...parts.map(([label, value]) => {
        const pair = term("", figure(value));
        pair.firstChild.append(box("span", "", `+ ${label}`));
        return pair;
      }),
      ...(error === null ? [] : [term("Error", long(error, "cb-error"))]),
      ...(answer === null ? [] : [term("Gold answer", long(answer, ""))]),
      term("Finish", finish === null ? "–" : box("span", "", finish === "length" ? "length (cut off)" : finish)),
      term("Length", `${count((rows.completion[i] ?? "").length)} characters`),
      marked("cb-estimate", term("Estimated accuracy", figure(estimate))),
      marked("cb-observed", term("Observed accuracy", figure(observed))),
      ...(estimate === null || observed === null ? [] : [scale(estimate, observed)]),
    ];
  }

  // Nought to one: a ring where the estimate lies, a dot where the group came out.
  function scale(estimate, observed) {
    const made = element("div", "cb-scale");
    made.setAttribute("aria-hidden", "true");
    for (const [className, value] of [["cb-estimate", estimate], ["cb-observed", observed]]) {
      const mark = element("i", className);
      mark.style.left = `${Math.max(0, Math.min(value, 1)) * 100}%`;
      made.append(mark);
    }
    return made;
  }

  // ---- What the reader does ----

  let waiting;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(refilter, event.target.type === "search" || event.target.name === "prompt" ? 120 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refilter));
  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  new ResizeObserver(draw).observe(list);
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".cb-row");
    if (row) choose(Number(row.dataset.place));
  });
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("help-open").addEventListener("click", () => part("help").showModal());
  part("same").addEventListener("click", () => {
    fields.prompt.value = text("key", current);
    refilter();
    list.focus();
  });

  list.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(list.clientHeight / ROW) - 1, 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -view.length, End: view.length };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    step(moves[event.key]);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || part("help").open) return;
    const field = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape" && form.contains(field)) {
      if (field === fields.search && field.value) {
        field.value = "";
        refilter();
      } else list.focus();
      event.preventDefault();
    }
    if (field || !["/", "?", "j", "k"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "/") {
      fields.search.focus();
      fields.search.select();
    } else if (event.key === "?") part("help").showModal();
    else {
      step(event.key === "j" ? 1 : -1);
      list.focus({ preventScroll: root.contains(document.activeElement) });
    }
  });

  window.addEventListener("hashchange", follow);
  // A page that follows a run has put new rows in place of the old.
  root.closest("section").addEventListener("completions-changed", load);

  if (root.clientWidth < 640) root.querySelector(".cb-more").open = false;
  load().then(() => {
    if (!follow() && view.length) select(0);
  });
})();
