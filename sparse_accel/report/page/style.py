"""The style of pages: light and dark, from a phone to a wide screen."""

from __future__ import annotations

# All below one class, so that a notebook's page keeps its own. A piece of a notebook has a background, whatever the
# notebook's theme is.
STYLE = """
.sparse-accel-report{--ink:#1b1f24;--paper:#fff;--faint:#5c6570;--line:#dfe3e8;--card:#f6f7f9;--track:#e6e9ed;
--s0:#868e96;--s1:#d9480f;--s2:#1864ab;--s3:#2b8a3e;--s4:#862e9c;--warn:#fff3e0;--warn-line:#e8590c;
color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:72rem}
@media (prefers-color-scheme:dark){.sparse-accel-report{--ink:#e6e9ed;--paper:#14181d;--faint:#9aa4b0;--line:#343b44;
--card:#1e242b;--track:#2b323a;--s0:#868e96;--s1:#ff8a4c;--s2:#74b3f0;--s3:#69c97d;--s4:#d69ae6;--warn:#3a2a17;--warn-line:#ff8a4c}}
.sparse-accel-report:is(div){background:var(--paper);padding:1rem;border-radius:.6rem}
.sparse-accel-report *{box-sizing:border-box}
.sparse-accel-report h1{font-size:1.6rem;line-height:1.25;margin:0 0 1rem}
.sparse-accel-report :is(h2,h3){font-size:1.15rem;margin:2rem 0 .5rem}
.sparse-accel-report p{margin:.5rem 0;overflow-wrap:anywhere}
.sparse-accel-report .cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.75rem;
margin:1rem 0}
.sparse-accel-report .cards>div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;
padding:.7rem .9rem}
.sparse-accel-report dt{color:var(--faint);font-size:.85rem}
.sparse-accel-report dd{margin:0;overflow-wrap:anywhere}
.sparse-accel-report dd.value{font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}
.sparse-accel-report dd.small{color:var(--faint);font-size:.8rem}
.sparse-accel-report .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.5rem;
margin:1.5rem 0;align-items:start}
.sparse-accel-report figure{margin:0;min-width:0}
.sparse-accel-report figure .scroll{max-height:30rem;overflow-y:auto;padding-right:.3rem}
.sparse-accel-report figcaption{font-weight:600;margin-bottom:.25rem}
.sparse-accel-report svg{display:block;width:100%;max-width:30rem;height:auto}
.sparse-accel-report svg text{font:14px system-ui,sans-serif;fill:var(--ink)}
.sparse-accel-report svg .faint{fill:var(--faint)}
.sparse-accel-report svg .at-end{text-anchor:end;font-variant-numeric:tabular-nums}
.sparse-accel-report svg .at-middle{text-anchor:middle}
.sparse-accel-report svg .grid{stroke:var(--line)}
.sparse-accel-report svg .mark{stroke:var(--faint);stroke-dasharray:2 4}
.sparse-accel-report svg .track{fill:var(--track)}
.sparse-accel-report svg .curve{fill:none;stroke-width:2.5;stroke-linejoin:round}
.sparse-accel-report .legend{margin:0 0 .25rem;font-size:.85rem;color:var(--faint)}
.sparse-accel-report .key{margin-right:1rem;white-space:nowrap}
.sparse-accel-report .key::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:2px;
margin-right:.4em;background:currentColor;vertical-align:-.05em}
.sparse-accel-report .scroll{overflow-x:auto}
.sparse-accel-report table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:auto;
min-width:min(100%,40rem);margin:0;color:inherit}
.sparse-accel-report :is(th,td){padding:.35rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap;
vertical-align:top;background:none}
.sparse-accel-report thead th{color:var(--faint);font-weight:600;border-bottom:2px solid var(--line)}
.sparse-accel-report tbody th{font-weight:400}
@media (max-width:40rem){.sparse-accel-report th[scope=row]{white-space:normal;overflow-wrap:anywhere;min-width:7rem;
max-width:40vw}.sparse-accel-report dd.value{font-size:1.1rem}}
.sparse-accel-report tfoot :is(th,td){font-weight:600;border-bottom:0}
.sparse-accel-report .left{text-align:left}
.sparse-accel-report .right{text-align:right}
.sparse-accel-report details{margin:1.5rem 0}
.sparse-accel-report summary{cursor:pointer;font-weight:600;padding:.3rem 0}
.sparse-accel-report .notes{background:var(--card);border-left:4px solid var(--line);border-radius:.3rem;
margin:1.5rem 0;padding:.6rem 1rem}
.sparse-accel-report .notes :is(h2,h3,h4,h5,h6){margin:0;font-size:1rem}
.sparse-accel-report .notes ul{margin:.4rem 0;padding-left:1.2rem}
.sparse-accel-report .notes li{overflow-wrap:anywhere}
.sparse-accel-report .warning{background:var(--warn);border-color:var(--warn-line)}
""" + "".join(
    f".sparse-accel-report svg .f{i}{{fill:var(--s{i})}}.sparse-accel-report svg .c{i}{{stroke:var(--s{i})}}"
    f".sparse-accel-report .k{i}::before{{background:var(--s{i})}}\n"
    for i in range(5)
)

PAGE = """
html{background:#fff}
body{margin:0;padding:clamp(1rem,4vw,3rem)}
body .sparse-accel-report{margin:0 auto}
@media (prefers-color-scheme:dark){html{background:#14181d}}
"""
