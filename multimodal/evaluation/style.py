"""How a report looks: one style sheet, light and dark, for a screen, a phone and paper."""

CSS = """
:root { color-scheme: light dark; --paper: #fbfaf6; --card: #ffffff; --ink: #20241f; --soft: #62695f; --line: #e3e2d9;
  --leaf: #2c6e4c; --wash: #e4efe6; --clay: #ac4a32; --clay-wash: #f7e7e1; --gold: #a57a1c; --track: #edece4;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", "Source Serif 4", Georgia,
    "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --paper: #131613; --card: #1b1f1b; --ink: #e8e7df; --soft: #9ba396;
  --line: #2d332d; --leaf: #86c9a2; --wash: #1d3427; --clay: #e79378; --clay-wash: #3a221b; --gold: #d9b45c;
  --track: #272c27; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans);
  font-variant-numeric: tabular-nums; }
main { max-width: 68rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4.5rem) clamp(1.1rem, 4vw, 2.5rem) 4rem; }
h1, h2 { font-family: var(--serif); font-weight: 600; letter-spacing: -.012em; line-height: 1.14; text-wrap:
  balance; }
h1 { font-size: clamp(2.1rem, 5.4vw, 3.5rem); margin: .35em 0 .3em; max-width: 20ch; }
h2 { font-size: clamp(1.4rem, 3vw, 1.85rem); margin: 0 0 .3rem; }
h3 { font: 600 .95rem/1.4 var(--sans); margin: 2rem 0 .6rem; }
section { margin-top: clamp(2.6rem, 6vw, 4.25rem); padding-top: 1.5rem; border-top: 1px solid var(--line); }
.kicker { color: var(--leaf); font-size: .78rem; font-weight: 650; letter-spacing: .13em; text-transform: uppercase;
  margin: 0; }
.lede { font: 400 clamp(1.1rem, 2.2vw, 1.28rem)/1.5 var(--serif); color: var(--soft); max-width: 44rem; margin: 0; }
.note { color: var(--soft); max-width: 46rem; margin: 0 0 1.2rem; font-size: .94rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1.1rem 2rem; margin: 2rem
  0 0; }
.facts div { border-top: 2px solid var(--ink); padding-top: .5rem; min-width: 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: .1rem 0 0; font-weight: 600; overflow-wrap: anywhere; line-height: 1.35; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: .6rem .9rem .6rem 0; border-bottom: 1px solid var(--line); vertical-align:
  middle; }
th { color: var(--soft); font-weight: 500; font-size: .8rem; white-space: nowrap; }
td.number, th.number { text-align: right; }
tbody th { color: var(--ink); font-size: .95rem; font-weight: 600; white-space: normal; }
tbody th small { display: block; font-weight: 400; color: var(--soft); font-size: .76rem; }
.score { font: 600 1.2rem/1.2 var(--serif); color: var(--leaf); }
.range { display: block; color: var(--soft); font-size: .76rem; white-space: nowrap; }
td.plot { width: 22%; min-width: 8rem; padding-left: .6rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; color: var(--soft); font-size: .82rem; margin: .7rem 0 0;
  padding: 0; list-style: none; }
.key i { display: inline-block; width: .62rem; height: .62rem; margin-right: .45rem; border-radius: 50%; background:
  var(--leaf); }
.key .control i { background: none; border: 2px solid var(--clay); }
.key .baseline i { background: var(--gold); border-radius: 1px; transform: rotate(45deg); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: 1.15rem; margin-top:
  1.2rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  display: flex; flex-direction: column; break-inside: avoid; }
.shown { background: var(--track); display: flex; }
.shown img { flex: 1 1 0; min-width: 0; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
    display: block; }
figcaption { padding: .85rem 1rem 1rem; }
.said { font: 400 1.06rem/1.38 var(--serif); margin: 0; overflow-wrap: anywhere; }
.true { color: var(--soft); font-size: .86rem; margin: .45rem 0 0; overflow-wrap: anywhere; line-height: 1.45; }
.mark { display: inline-block; font-size: .72rem; font-weight: 650; letter-spacing: .04em; border-radius: 99px;
  padding: .08rem .6rem; margin: 0 0 .5rem; background: var(--clay-wash); color: var(--clay); }
.mark.right { background: var(--wash); color: var(--leaf); }
.exchange { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.1rem;
  margin-top: 1.1rem; break-inside: avoid; }
.asked { display: flex; flex-wrap: wrap; gap: .7rem; align-items: flex-end; }
.asked img { width: clamp(7rem, 26vw, 11rem); height: auto; aspect-ratio: 1; object-fit: contain;
    border-radius: 8px; background:
  var(--track); }
.asked p { margin: 0; flex: 1 1 100%; font-size: .95rem; overflow-wrap: anywhere; white-space: pre-line; }
.exchange .said { border-left: 3px solid var(--leaf); padding-left: .9rem; margin-top: 1rem; white-space: pre-line; }
.exchange .true { padding-left: calc(.9rem + 3px); }
.held { display: flex; gap: .8rem; align-items: baseline; padding: .5rem 0; border-bottom: 1px solid var(--line); }
.held b { flex: none; width: 1.3rem; color: var(--leaf); } .held.broken b, .held.broken span { color: var(--clay); }
.held em { margin-left: auto; font: 500 .88rem var(--mono); white-space: nowrap; }
pre { background: var(--track); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; font: .84rem/1.5
  var(--mono); margin: .9rem 0 0; }
footer { margin-top: 4rem; color: var(--soft); font-size: .84rem; }
@media (max-width: 42rem) {
  thead { position: absolute; clip-path: inset(50%); height: 1px; width: 1px; overflow: hidden; }
  .figures tr { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem 1rem; padding: .9rem 0;
    border-bottom: 1px solid var(--line); }
  .figures th, .figures td { border: 0; padding: 0; text-align: left !important; }
  .figures tbody th { grid-column: 1 / 3; } .figures td.plot { grid-column: 1 / -1; width: auto; order: 9; padding:
    0 .4rem; }
  .figures td[data-label]::before { content: attr(data-label); display: block; color: var(--soft); font-size:
    .74rem; }
  .figures .range { white-space: normal; }
  .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .7rem; } figcaption { padding: .7rem .75rem .8rem;
    } .said { font-size: .98rem; }
}
@media print { body { background: #fff; } section { break-inside: auto; } }
"""
