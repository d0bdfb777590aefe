"""The page's style sheet: light, dark and print, without anything from outside."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f6f1;--card:#fff;--ink:#1b211d;--soft:#5c6660;--faint:#dfe3dc;--fainter:#eef0ea;
--accent:#2f6f4f;--good:#2b7a4b;
--bad:#b23a2e;--warn:#8a5a00;--warn-back:#fdf3dc;--c0:#2f6f4f;--c1:#d0692c;--c2:#3b6fb5;--c3:#8d4fb0;--c4:#a58a1c;--c5:#4b9a9a;
--final:#b8283f;--nw-surface:var(--card);
--right:43,122,75;--wrong:190,70,40}
@media screen and (prefers-color-scheme:dark){:root{--page:#0f1311;--card:#171c19;--ink:#e7ece8;--soft:#9caaa2;--faint:#2d3631;
--fainter:#222924;--accent:#6fcf9c;
--good:#6fcf9c;--bad:#f08a7c;--warn:#f0c674;--warn-back:#2b2514;--c0:#6fcf9c;--c1:#f0995c;--c2:#7fb2f0;--c3:#c79af0;--c4:#e0cb68;
--c5:#7fd1d1;--final:#ff7a90;
--right:70,180,120;--wrong:225,105,70}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,nav,footer{max-width:1200px;margin:0 auto;padding:0 20px}
header{padding-top:26px}.brand{display:flex;align-items:center;gap:8px;color:var(--soft);font-size:13px;font-weight:600;
letter-spacing:.02em}
.brand svg{width:22px;height:22px}.brand .state{margin-left:auto;padding:2px 10px;border-radius:20px;border:1px solid var(--faint);
font-weight:600}
.state.finished{color:var(--good)}.state.running{color:var(--warn)}.state.stopped{color:var(--bad)}
h1{font-size:clamp(25px,4.4vw,40px);line-height:1.15;letter-spacing:-.02em;margin:14px 0 6px;font-weight:700;text-wrap:balance}
.lead{color:var(--soft);margin:0 0 18px;font-size:16px}
h2{font-size:21px;letter-spacing:-.01em;margin:44px 0 4px;scroll-margin-top:56px}h3{font-size:15px;margin:22px 0 6px}
.sub{color:var(--soft);margin:0 0 14px;max-width:85ch}
nav{position:sticky;top:0;z-index:2;background:var(--page);display:flex;gap:2px 18px;overflow-x:auto;padding-top:9px;padding-bottom:9px;
border-bottom:1px solid var(--faint);
font-size:14px;white-space:nowrap}nav a{color:var(--soft);text-decoration:none;font-weight:500}
nav a:hover,nav a:focus-visible{color:var(--accent)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:14px}.grid>*{min-width:0}
.card,.chart{background:var(--card);border:1px solid var(--faint);border-radius:10px;padding:16px 18px;margin:0}
.hero{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));gap:14px;margin-bottom:18px}.hero>*{min-width:0}
.card>h3{margin:0 0 6px;font-size:12.5px;font-weight:600;color:var(--soft);letter-spacing:0}
.big{font-size:34px;font-weight:700;letter-spacing:-.02em;line-height:1.15}.big small{font-size:15px;font-weight:500;color:var(--soft);
letter-spacing:0}
.card p{margin:4px 0}.soft{color:var(--soft)}.ok{color:var(--good);font-weight:600}.no{color:var(--bad);font-weight:600}
.notes{list-style:none;margin:0 0 18px;padding:0}.notes li{background:var(--warn-back);border-left:3px solid var(--warn);
padding:8px 14px;border-radius:4px;margin-bottom:6px}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.88em}
pre{background:var(--fainter);border-radius:6px;padding:10px 12px;overflow-x:auto;margin:8px 0;line-height:1.45}
.meter{position:relative;height:12px;border-radius:6px;background:var(--fainter);margin:6px 0 2px}.meter i{position:absolute;
inset:0 auto 0 0;border-radius:6px;background:var(--soft)}
.meter.within i{background:var(--good)}.meter.over i{background:var(--bad)}.meter b{position:absolute;top:-4px;bottom:-4px;width:2px;
background:var(--ink)}
.budget+.budget{margin-top:12px}.budget div:first-child{display:flex;justify-content:space-between;gap:10px;flex-wrap:wrap}
.interval{position:relative;height:34px;margin:10px 4px 0;border-bottom:0}.interval:before{content:"";position:absolute;left:0;right:0;
top:8px;height:2px;background:var(--faint)}
.interval i{position:absolute;top:5px;height:8px;border-radius:4px;background:var(--accent);opacity:.35}
.interval b{position:absolute;top:1px;height:16px;width:3px;margin-left:-1px;border-radius:2px;background:var(--accent)}
.interval span{position:absolute;top:17px;font-size:11px;color:var(--soft)}
dl.facts{display:grid;grid-template-columns:auto 1fr;gap:3px 16px;margin:0}dl.facts dt{color:var(--soft)}dl.facts dd{margin:0;
overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
figcaption{display:flex;flex-wrap:wrap;gap:2px 16px;align-items:baseline;margin-bottom:10px;font-size:14px}.keys{display:flex;
flex-wrap:wrap;gap:0 12px;font-size:12.5px;color:var(--soft)}
.key i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:5px}.key i.front{height:3px;width:16px;
border-radius:2px;vertical-align:3px;background:var(--soft)}
i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}i.c4{background:var(--c4)}
i.c5{background:var(--c5)}i.final{background:var(--final)}
.plot{position:relative;height:230px;margin:8px 8px 40px 52px}.plot.bars{height:220px}.plot svg{position:absolute;inset:0;width:100%;
height:100%;overflow:visible}
.plot span{position:absolute;font-size:11.5px;line-height:1.2;color:var(--soft);white-space:nowrap;font-variant-numeric:tabular-nums}
.ty{right:calc(100% + 7px);transform:translateY(-50%)}.tx{top:calc(100% + 6px);transform:translateX(-50%)}.xl{right:0;
top:calc(100% + 23px)}
.plot .tm{color:var(--ink);font-weight:600}.plot .over{transform:translateY(-115%)}
.grid path,.plot path,.plot rect{vector-effect:non-scaling-stroke}.plot .grid{stroke:var(--faint);stroke-width:1;fill:none}
.limit{stroke:var(--ink);stroke-width:1.4;stroke-dasharray:5 4;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.front{fill:none;stroke:var(--soft);stroke-width:1.5}.point{stroke-width:7.5;
stroke-linecap:round;fill:none;opacity:.75}
.point.final{stroke-width:13;opacity:1}.point.ghost{opacity:0;stroke-width:12}.point.ghost:hover{opacity:.5}
.point:not(.ghost):hover{opacity:1;
stroke-width:11}
path.c0{stroke:var(--c0)}path.c1{stroke:var(--c1)}path.c2{stroke:var(--c2)}path.c3{stroke:var(--c3)}path.c4{stroke:var(--c4)}
path.c5{stroke:var(--c5)}path.final{stroke:var(--final)}
rect.c0{fill:var(--c0)}rect.c1{fill:var(--c1);opacity:.8}rect.hit{fill:transparent}g:hover>rect.hit{fill:var(--fainter)}
.note{font-size:13px;color:var(--soft);margin:6px 0 0}
.decisions{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:12px 22px}.decision{min-width:0}
.decision.idle{opacity:.5}
.decision .name{font:12px/1.35 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap}
.decision svg{display:block;width:100%;height:30px;border-radius:3px;background:var(--fainter);margin:2px 0}.area{fill:var(--accent)}
.area:hover{stroke:var(--ink);stroke-width:2;vector-effect:non-scaling-stroke}
.options{display:flex;flex-wrap:wrap;gap:0 9px;font-size:11.5px;color:var(--soft)}.option i{display:inline-block;width:8px;height:8px;
border-radius:2px;background:var(--accent);margin-right:4px}
.option.taken{color:var(--ink);font-weight:700;text-decoration:underline;text-underline-offset:3px}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}.picture{padding:8px}.picture svg{display:block;margin:0 auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13.5px}.list{width:100%}
.list th,.list td{padding:5px 12px 5px 0;text-align:left;border-bottom:1px solid var(--faint);vertical-align:top}
.list th{color:var(--soft);font-weight:600;font-size:12.5px}.list .n{text-align:right;white-space:nowrap}
.list tr.strong td{font-weight:700}
.confusion{margin:0 auto;font-size:12.5px}.confusion th{font-weight:500;color:var(--soft);padding:3px 6px;text-align:right;
max-width:130px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.confusion thead th{text-align:center;max-width:58px}.confusion td{min-width:34px;height:30px;text-align:center;
border:1px solid var(--card);padding:0 4px}
.confusion td.none{color:var(--faint)}td.right{background:rgba(var(--right),var(--shade))}
td.wrong{background:rgba(var(--wrong),var(--shade));font-weight:700}
.confusion .recall{padding-left:10px;color:var(--soft);white-space:nowrap;text-align:right}
.matrix{display:block;width:100%;max-width:520px;margin:0 auto}.matrix .paper{fill:var(--fainter)}.matrix .right{fill:rgb(var(--right))}
.matrix .wrong{fill:rgb(var(--wrong))}
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(92px,1fr));gap:10px}.images figure{margin:0;font-size:12px;
line-height:1.35;overflow-wrap:anywhere}
.images img{display:block;width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;border-radius:5px;
background:var(--fainter);margin-bottom:3px}
.strip{display:flex;gap:4px;flex-wrap:wrap;margin-top:8px}.strip img{width:40px;height:40px;object-fit:contain;
image-rendering:pixelated;border-radius:4px;background:var(--fainter)}
.tree path{fill:none;stroke:var(--accent);opacity:.55;stroke-linecap:round}.tree path:hover{opacity:1}
.tree circle{fill:var(--card);stroke:var(--ink);stroke-width:1.6}.tree circle:hover{fill:var(--accent)}
.tree text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}.tree .soft{fill:var(--soft);font-size:11.5px}
.tree .idea{text-anchor:middle;font-size:11.5px;font-weight:600}
.ways{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:18px 26px}
.way{display:flex;gap:12px;margin:0;align-items:flex-start}.way img{width:64px;height:64px;flex:none;object-fit:contain;
image-rendering:pixelated;border-radius:5px;background:var(--fainter)}.way>div{flex:1;min-width:0}
.way figcaption{margin:0 0 4px;gap:0}.way ol{list-style:none;margin:0;padding:0}
.way li{position:relative;font-size:12.5px;line-height:1.35;margin-bottom:3px;padding:2px 7px;border-radius:4px;background:var(--fainter);
overflow:hidden}
.way li i{position:absolute;inset:0 auto 0 0;background:var(--accent);opacity:.2}.way li.stray i{background:var(--bad);opacity:.28}.way li span{position:relative}
.phases{display:flex;height:16px;border-radius:5px;overflow:hidden;margin:4px 0 8px}.phases i{min-width:2px}
.phases i+i{border-left:1px solid var(--card)}
details{margin-top:12px}summary{cursor:pointer;color:var(--accent);font-weight:600}footer{padding-top:34px;padding-bottom:40px;
color:var(--soft);font-size:13px}
a{color:var(--accent)}:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.below{margin-bottom:14px}.hero pre{white-space:pre-wrap;overflow-wrap:anywhere}
.two{grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
@media (min-width:780px){.wide{grid-column:span 2}}
@media (max-width:600px){.decisions{grid-template-columns:1fr 1fr;gap:10px 14px}
main,header,nav,footer{padding-left:14px;padding-right:14px}.card,.chart{padding:13px 13px}
.plot{margin-left:44px}.confusion td{min-width:25px;height:26px;padding:0 1px}
.confusion th{padding:2px 4px;max-width:72px}.confusion{font-size:11.5px}}
@media print{body{background:#fff;font-size:11pt}nav{display:none}.card,.chart,.decision,figure,tr{break-inside:avoid}
h2{break-after:avoid}details::details-content{content-visibility:visible}
.scroll{overflow:visible}.picture svg{max-width:100%;height:auto}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
