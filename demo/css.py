"""The page's style sheet. Colours come from `demo.style`'s theme through Gradio's own variables.

Gradio puts its own ancestors, ``.gradio-container .contain``, before every selector, and within ``@media`` keeps only
that form. So there a selector must not name those ancestors again, nor anything outside of them, nor have a comma in
an ``:is()``: it would be split there.
"""

from __future__ import annotations

from typing import Final

from serving.labels import STREAMS

_LAYERS: Final = "\n".join(
    f'.ls-layers label:has(input[name="{stream.name}"]) {{ --c: rgb{stream.colour_rgb}; }}' for stream in STREAMS
)

CSS: Final = """
.gradio-container { max-width: 1440px !important; margin: 0 auto !important; padding: 0 !important; }
.gradio-container .main.app { padding: clamp(14px, 1.6vw, 20px) clamp(16px, 3vw, 32px) 32px !important;
  max-width: 1440px; }
.gradio-container main { padding: 0 !important; gap: 14px; }
.gradio-container .html-container { padding: 0; }
.gradio-container :is(.block, section) :is(h1, h2, p, ul) { margin: 0; padding: 0; }
.gradio-container strong { font-weight: 700; }
.gradio-container :is(button, input, a, [tabindex], label:focus-within):focus-visible {
  outline: 2px solid var(--color-accent) !important; outline-offset: 2px;
}

/* The masthead */
.ls-masthead { display: flex !important; flex-wrap: wrap; align-items: center !important; gap: 10px 24px !important;
  justify-content: space-between; padding-bottom: 14px; border-bottom: 1px solid var(--border-color-primary); }
.ls-masthead > * { width: auto !important; flex: 0 1 auto !important; margin: 0 !important; }
.ls-header { display: flex; gap: 14px; align-items: center; }
.ls-mark { width: 42px; height: 42px; flex: none; fill: none; stroke: var(--color-accent); stroke-width: 1.8;
  stroke-linecap: round; stroke-linejoin: round; }
.gradio-container .ls-header h1 { font-size: 24px; line-height: 1.15; font-weight: 700; letter-spacing: -0.01em; }
.ls-tagline { color: var(--body-text-color-subdued); font-size: 14px; line-height: 1.4; }
.ls-pill { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: baseline; font-size: 13px; }
.ls-pill > span::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 50%;
  margin-right: 8px; background: var(--state); }
.ls-pill-up { --state: var(--ls-up); }
.ls-pill-down { --state: var(--ls-down); }
.gradio-container code { font-family: var(--font-mono); font-size: 0.92em; color: var(--body-text-color-subdued);
  background: none; border: 0; padding: 0; overflow-wrap: anywhere; }

/* Messages */
.ls-banner, .ls-alert { border: 1px solid var(--error-border-color); border-left-width: 4px; border-radius: 8px;
  background: var(--error-background-fill); color: var(--error-text-color); padding: 12px 16px; font-size: 14px;
  line-height: 1.5; overflow-wrap: anywhere; }
.ls-upload { position: fixed; z-index: 50; left: 16px; right: 16px; bottom: 16px; max-width: 560px; margin: 0 auto;
  padding-right: 52px; box-shadow: 0 4px 24px rgb(0 0 0 / 0.25); }
.ls-upload button { position: absolute; top: 4px; right: 4px; width: 40px; height: 40px; font-size: 22px;
  line-height: 1; color: inherit; background: none; border: 0; cursor: pointer; }
.gradio-container :is(.ls-banner, .ls-alert) :is(code, strong, p) { color: inherit; }
.ls-disclaimer { font-size: 14px; line-height: 1.4; padding: 9px 14px; border-radius: 8px; color: var(--ls-note-ink);
  background: var(--ls-note); border: 1px solid var(--ls-note-line); }
.ls-doubt { border: 2px solid #e0a92e; border-left-width: 10px; border-radius: 8px; background: var(--ls-note);
  color: var(--ls-note-ink); padding: 14px 18px; font-size: 15px; line-height: 1.5; }
.gradio-container .ls-doubt strong { display: block; color: inherit; font-size: 17px; margin-bottom: 4px; }
.gradio-container .ls-doubt p { color: inherit; }
.gradio-container .ls-disclaimer strong { font-weight: 700; color: inherit; }

/* Gradio's own, where it would be of another room */
.gradio-container input[type=range] { --neutral-200: var(--ls-track); }
.gradio-container input[type=range]::-webkit-slider-thumb { background-color: var(--color-accent); }
.gradio-container input[type=range]::-moz-range-thumb { background-color: var(--color-accent); }
.gradio-container a.download-link { color: var(--body-text-color); }
/* A button in a button, and its name is missing: files are taken away and chosen again. */
.gradio-container button[aria-label="common.upload"] { display: none; }

/* Two columns: what goes in, what comes out */
.ls-bench { display: grid !important; grid-template-columns: 316px minmax(0, 1fr); gap: 20px !important;
  align-items: start; }
.ls-reading { display: grid !important; grid-template-columns: minmax(0, 1.08fr) minmax(0, 1fr);
  gap: 14px 20px !important; align-items: start; }
.ls-bench > *, .ls-reading > * { min-width: 0 !important; width: 100%; }
.ls-input { gap: 14px !important; }
.ls-result, .ls-findings, .ls-viewer { gap: 14px !important; }

/* Input */
#scan, #study, #files { min-height: 148px; }
.ls-examples { gap: 8px !important; }
.gradio-container .ls-small { font-size: 14px; font-weight: 700; color: var(--body-text-color); }
.gradio-container .ls-example { justify-content: flex-start; gap: 12px; padding: 6px 12px 6px 6px; min-height: 56px;
  border: 1px solid var(--border-color-primary); border-radius: 8px; font-size: 14px; font-weight: 500; }
.gradio-container .ls-example .button-icon { width: 44px; height: 44px; object-fit: cover; border-radius: 5px;
  margin: 0; background: var(--ls-film); max-width: none; }
.gradio-container .ls-go { min-height: 46px; font-size: 16px; font-weight: 700; }
.ls-note { color: var(--body-text-color-subdued); font-size: 13px; line-height: 1.5; }

/* The film */
#overlay { background: var(--ls-film); border-color: var(--border-color-primary); min-height: 280px; }
#overlay img { width: 100%; height: auto; max-height: min(62vh, 560px); object-fit: contain;
  background: var(--ls-film); }
#overlay .image-container { background: var(--ls-film); }
/* Else a small picture stays small, and lies at the top. */
#overlay .image-frame { width: 100%; }
.ls-controls .styler { gap: 0; background: var(--block-background-fill); }
.ls-layers .wrap { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 8px; }
.ls-layers label { gap: 0; }
.ls-layers label::before { content: ""; order: 1; width: 12px; height: 12px; border-radius: 3px; flex: none;
  background: var(--c); margin-left: 8px; }
.ls-layers label > span { order: 2; }
@LAYERS@
.ls-swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; background: var(--c); flex: none; }
.ls-note .ls-swatch { width: 10px; height: 10px; background: none; border: 2px solid var(--c); margin-right: 5px;
  vertical-align: -1px; }
.gradio-container .ls-inset { padding: 0 12px 12px !important; }
.ls-film { background: var(--ls-film); border: 1px solid var(--border-color-primary); border-radius: 8px;
  overflow: hidden; display: grid; place-items: center; min-height: 280px; }
.ls-film img { width: 100%; height: auto; max-height: min(62vh, 560px); object-fit: contain; display: block; }
.gradio-container .ls-empty { color: #9fb0ba; font-size: 14px; padding: min(20vh, 180px) 16px !important; }

/* Along the axis */
.ls-plot { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 8px; }
.ls-scale { display: flex; flex-direction: column; justify-content: space-between; font-size: 12px; text-align: right;
  line-height: 1; color: var(--body-text-color-subdued); white-space: nowrap; }
.ls-field { position: relative; height: 150px; background: var(--ls-film); border-radius: 5px; overflow: hidden;
  cursor: crosshair; touch-action: pan-y; user-select: none; }
.ls-field svg { width: 100%; height: 100%; display: block; }
.ls-field path, .ls-legend path { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke-linecap: round; }
.ls-field .ls-half { stroke: #394953; stroke-width: 1; }
.ls-field rect { fill: #26323b; }
.ls-cursor { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #f1e7cf;
  pointer-events: none; }
.ls-ends { display: flex; justify-content: space-between; font-size: 12px; padding: 5px 0 0 46px;
  color: var(--body-text-color-subdued); }
.gradio-container ul.ls-legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 10px;
  font-size: 13px; color: var(--ls-soft); }
.gradio-container .ls-legend li { display: flex; align-items: center; gap: 7px; margin: 0; }
.ls-legend svg { width: 34px; height: 14px; flex: none; background: var(--ls-film); border-radius: 3px;
  padding: 3px 4px; }
.ls-shade { width: 34px; height: 14px; border-radius: 3px; background: #26323b; flex: none; }

/* Reading */
.ls-progress label { display: grid; gap: 7px; font-size: 14px; color: var(--body-text-color);
  font-variant-numeric: tabular-nums; }
.ls-progress progress { appearance: none; width: 100%; height: 8px; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--ls-track); }
.ls-progress progress::-webkit-progress-bar { background: var(--ls-track); }
.ls-progress progress::-webkit-progress-value { background: var(--color-accent); }
.ls-progress progress::-moz-progress-bar { background: var(--color-accent); }
.ls-known { background: var(--ls-note); border: 1px solid var(--ls-note-line); border-radius: 10px;
  padding: 12px 18px; color: var(--ls-note-ink); font-size: 14px; line-height: 1.5; overflow-wrap: anywhere; }
.gradio-container .ls-known h2 { font-size: 14px; font-weight: 700; color: inherit; }
.gradio-container .ls-known ul { list-style: disc; padding-left: 18px; }
.gradio-container .ls-known li { color: inherit; margin: 0; }
.ls-series .wrap { display: grid; gap: 8px; }
.ls-series label { align-items: flex-start; }

/* Findings */
.ls-card { background: var(--block-background-fill); border: 1px solid var(--border-color-primary);
  border-radius: 10px; padding: 14px 18px 18px; }
.ls-heading { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 2px 12px;
  margin-bottom: 10px; }
.gradio-container .ls-heading h2 { font-size: 16px; font-weight: 700; line-height: 1.3; }
.ls-heading span, .ls-quiet { color: var(--body-text-color-subdued); font-size: 13px; }
.ls-lead { font-size: 14px; color: var(--body-text-color-subdued); padding-bottom: 10px !important; }
.gradio-container .ls-lead strong { color: var(--body-text-color); font-weight: 700; }
.gradio-container ul.ls-rows { list-style: none; display: grid; gap: 11px; }
.gradio-container li.ls-row { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 5px 12px; margin: 0;
  align-items: center; font-size: 14px; line-height: 1.35; color: var(--body-text-color); }
.ls-name { display: flex; gap: 9px; align-items: center; }
.ls-value { font-variant-numeric: tabular-nums; text-align: right; }
.ls-top .ls-name, .ls-top .ls-value { font-weight: 700; }
.ls-track { grid-column: 1 / -1; position: relative; display: block; height: 8px; border-radius: 4px;
  background: var(--ls-track); }
.ls-track > b { display: block; height: 100%; min-width: 2px; border-radius: 4px; background: var(--c); }
.ls-track > s { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px;
  background: var(--ls-tick); }
.ls-unknown .ls-track { background: repeating-linear-gradient(135deg, var(--ls-track) 0 5px, transparent 5px 10px); }
.ls-verdict { grid-column: 1 / -1; font-size: 13px; line-height: 1.45; justify-self: start; }
.gradio-container .ls-found strong { color: var(--body-text-color); font-weight: 700; }
.ls-found { color: var(--ls-soft); }
.ls-nothing { color: var(--ls-good); }
.ls-nothing::before { content: "\\2713"; margin-right: 7px; }
.ls-closed { color: var(--ls-soft); border: 1px dashed var(--ls-dashed); border-radius: 5px; padding: 1px 8px; }
.gradio-container ol.ls-steps { margin: 0; padding: 0; list-style: none; display: grid; gap: 14px; }
.gradio-container .ls-steps li { display: grid; grid-template-columns: 28px 1fr; font-size: 14px; line-height: 1.5;
  color: var(--ls-soft); margin: 0; }
.ls-steps li > b { color: var(--color-accent); font-weight: 700; }
.ls-na { border: 1px dashed var(--ls-dashed); border-radius: 8px; padding: 14px 16px; font-size: 14px; line-height: 1.5;
  color: var(--ls-soft); background: repeating-linear-gradient(135deg, var(--ls-hatch) 0 8px, transparent 8px 16px); }
.gradio-container .ls-na strong { color: var(--body-text-color); font-size: 15px; }
.ls-jump { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-decoration: underline; text-underline-offset: 2px; }
.ls-downloads { gap: 8px !important; }
.ls-kinds { display: flex !important; flex-wrap: wrap; gap: 8px !important; }
.gradio-container .ls-kinds button { flex: 0 0 auto; min-width: 0; padding: 6px 14px; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
.gradio-container table.ls-burden, .gradio-container table.ls-cases { width: 100%; border-collapse: collapse; border: 0;
  font-size: 14px; line-height: 1.4; margin: 0; }
.gradio-container :is(.ls-burden, .ls-cases) :is(th, td) { border: 0; padding: 7px 14px 7px 0; text-align: left;
  border-bottom: 1px solid var(--border-color-primary); background: none; color: var(--body-text-color);
  vertical-align: top; font-weight: 400; }
.gradio-container .ls-burden thead th { color: var(--body-text-color-subdued); font-size: 13px; }
.gradio-container .ls-burden tr:last-child :is(th, td) { border-bottom: 0; }
.ls-burden td { white-space: nowrap; }
.ls-burden td b { display: block; font-weight: 700; font-variant-numeric: tabular-nums; }
.ls-burden td span { font-size: 13px; color: var(--body-text-color-subdued); }
.ls-burden th .ls-swatch { margin-right: 9px; vertical-align: -1px; }

/* Many cases */
.gradio-container #folder-csv { flex: none; align-self: flex-start; width: auto; padding: 6px 14px; border-radius: 6px;
  border: 1px solid var(--border-color-primary); }
.gradio-container .ls-directory { border: 1px solid var(--border-color-primary); }
.ls-cases th button { font: inherit; font-size: 13px; color: var(--body-text-color-subdued); background: none;
  border: 0; padding: 0; cursor: pointer; text-align: left; white-space: nowrap; }
.ls-cases th button::after { content: "\\2195"; margin-left: 6px; }
.ls-cases th[aria-sort="ascending"] button::after { content: "\\2191"; }
.ls-cases th[aria-sort="descending"] button::after { content: "\\2193"; }
.gradio-container table.ls-cases { min-width: 820px; }
.ls-cases .ls-number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.ls-cases .ls-filename { overflow-wrap: anywhere; min-width: 120px; }
.gradio-container .ls-cases .ls-bad td { color: var(--error-text-color); }
.gradio-container .ls-cases td p { margin: 4px 0 0; max-width: 320px; font-size: 13px; color: var(--body-text-color); }
.gradio-container .ls-cases .ls-doubtful td:nth-child(3) { border-left: 10px solid #e0a92e; padding-left: 10px;
  background: var(--ls-note); color: var(--ls-note-ink); }
.gradio-container .ls-cases .ls-doubtful p, .gradio-container .ls-cases .ls-doubtful strong { color: inherit; }

/* About */
.ls-about { display: grid; grid-template-columns: minmax(0, 1fr); }
.ls-about > div { columns: 2; column-gap: 20px; }
.ls-about .ls-card { break-inside: avoid; margin-bottom: 14px; }
.gradio-container .ls-text { font-size: 14px; line-height: 1.55; color: var(--body-text-color); }
.gradio-container .ls-text + .ls-text { margin-top: 10px; }
.gradio-container ul.ls-list { list-style: disc; padding-left: 18px; font-size: 14px; line-height: 1.55; }
.gradio-container .ls-list li { color: var(--body-text-color); margin: 0 0 6px; }
.gradio-container details summary { cursor: pointer; font-size: 14px; margin: 10px 0; }
.gradio-container pre.ls-code { margin: 12px 0 0; padding: 12px 14px; overflow-x: auto; border-radius: 8px;
  font-size: 13px; line-height: 1.5; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); }
.gradio-container .ls-code code { color: var(--body-text-color); white-space: pre; overflow-wrap: normal; }
.ls-meaning { padding: 0; font-size: 14px; line-height: 1.5; }
.gradio-container .ls-meaning summary { margin: 0; padding: 12px 18px; font-weight: 700; }
.gradio-container .ls-meaning dl { margin: 0; padding: 0 18px 16px; }
.gradio-container .ls-meaning dt { font-weight: 700; margin: 8px 0 2px; }
.gradio-container .ls-meaning dd { margin: 0; color: var(--body-text-color-subdued); }

/* Time and models */
.ls-scroll { overflow-x: auto; }
.gradio-container .ls-scroll + .ls-note { margin-top: 8px; }
.gradio-container table.ls-models { width: 100%; border-collapse: collapse; font-size: 13px; line-height: 1.4;
  margin: 0; }
.gradio-container .ls-models :is(th, td) { text-align: left; padding: 5px 12px 5px 0; border: 0;
  border-bottom: 1px solid var(--border-color-primary); background: none; color: var(--body-text-color); }
.gradio-container .ls-models th { color: var(--body-text-color-subdued); font-weight: 500; }
.gradio-container .ls-models tr:last-child td { border-bottom: 0; }
.gradio-container .ls-models code { overflow-wrap: normal; white-space: nowrap; }
.gradio-container table.ls-models { border: 0; }
.ls-ms { display: inline-block; min-width: 60px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ls-time { display: inline-block; width: 44px; height: 5px; vertical-align: 2px; }
.ls-time > b { display: block; height: 100%; min-width: 1px; border-radius: 3px; background: var(--ls-time); }

@media (max-width: 1400px) {
  table.ls-models th, table.ls-models td { padding-right: 8px; }
  .ls-ms { min-width: 54px; }
  .ls-time { width: 32px; }
}
@media (max-width: 1180px) { .ls-reading { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 860px) {
  .ls-bench { grid-template-columns: minmax(0, 1fr); }
  .ls-about > div { columns: 1; }
  .ls-tagline { font-size: 13px; }
  .ls-card { padding: 14px 14px 16px; }
  .ls-meaning { padding: 0; }
  table.ls-models th, table.ls-models td { padding-right: 8px; }
  table.ls-models td:last-child { padding-right: 0; }
  table.ls-models code { font-size: 11px; }
  table.ls-burden th, table.ls-burden td { padding-right: 8px; font-size: 13px; }
  table.ls-burden td:last-child { padding-right: 0; }
  .ls-burden th .ls-swatch { margin-right: 6px; }
  table.ls-models th:first-child, table.ls-models td:first-child, .ls-time { display: none; }
}
""".replace("@LAYERS@", _LAYERS)
