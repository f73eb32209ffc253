"""The style sheet of reports: readable on paper, on a phone, in light and in dark; the colours are those of the curves."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f23;--soft:#57606a;--line:#d8dee4;--paper:#fff;--panel:#f5f7f9;--bar:#0072b2;--good:#00694b;--bad:#b3400a}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ae;--line:#3a424a;--paper:#14181c;--panel:#1d2329;--bar:#56b4e9;--good:#3fc796;--bad:#ff9b66}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
header,main,footer{max-width:66rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.3rem 0 .3rem}
p{margin:.4rem 0;max-width:48rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:0;margin:.8rem 0 0;font-size:.9rem}
a{color:var(--bar)}
.state{font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}.soft{color:var(--soft)}
ul.plain{padding-left:1.2rem;margin:.4rem 0}ul.plain li{margin:.25rem 0;max-width:52rem}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:.2rem 0;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:.22rem .9rem .22rem 0;border-bottom:1px solid var(--line);font-weight:400;unicode-bidi:isolate;min-width:2.5rem}
thead th{color:var(--soft);white-space:nowrap}tbody th{font-weight:600}th{overflow-wrap:break-word;max-width:24rem}
.number{text-align:right;white-space:nowrap}
time{white-space:nowrap}
tr.best th,tr.best td{background:var(--panel);font-weight:600}
tr.gap td,tr.gap th{color:var(--soft);font-weight:400}
.bar{display:inline-block;width:9rem;height:.75rem;background:var(--panel);vertical-align:middle;border-radius:2px}
.bar span{display:block;height:100%;background:var(--bar);border-radius:2px;-webkit-print-color-adjust:exact;print-color-adjust:exact}
figure{margin:.8rem 0;background:#fff;padding:.5rem;border:1px solid var(--line);border-radius:6px}
img{display:block;max-width:100%;height:auto;margin:0 auto}
pre{background:var(--panel);padding:.7rem .9rem;border-radius:6px;overflow-x:auto;font-size:.82rem;white-space:pre-wrap;margin:.5rem 0}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;unicode-bidi:isolate}
summary{cursor:pointer;color:var(--soft)}
footer{color:var(--soft);font-size:.85rem;padding-top:2rem;padding-bottom:2rem}
@media (max-width:34rem){body{font-size:15px}figure{overflow-x:auto}img{max-width:none;width:44rem}th,td{padding-right:.6rem}.bar{width:5rem}}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--panel:#f2f2f2;--bar:#0072b2;--good:#00694b;--bad:#b3400a}
body{font-size:10.5pt}nav{display:none}header,main,footer{max-width:none;padding:0}.wide{overflow:visible}table{font-size:8.5pt}th,td{padding-right:.6rem}
h2,h3{break-after:avoid}tr,figure,pre{break-inside:avoid}pre{white-space:pre-wrap}}
"""
