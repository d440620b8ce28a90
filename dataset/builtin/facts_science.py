"""Facts of chemistry, astronomy, calendars and measures: tables of `Chinese/English`, and nothing else."""

ELEMENTS = """
1 H 氢/hydrogen
6 C 碳/carbon
7 N 氮/nitrogen
8 O 氧/oxygen
26 Fe 铁/iron
29 Cu 铜/copper
79 Au 金/gold
47 Ag 银/silver
2 He 氦/helium
11 Na 钠/sodium
20 Ca 钙/calcium
13 Al 铝/aluminium|aluminum
3 Li 锂/lithium
4 Be 铍/beryllium
5 B 硼/boron
9 F 氟/fluorine
10 Ne 氖/neon
12 Mg 镁/magnesium
14 Si 硅/silicon
15 P 磷/phosphorus
16 S 硫/sulfur|sulphur
17 Cl 氯/chlorine
18 Ar 氩/argon
19 K 钾/potassium
22 Ti 钛/titanium
24 Cr 铬/chromium
25 Mn 锰/manganese
27 Co 钴/cobalt
28 Ni 镍/nickel
30 Zn 锌/zinc
35 Br 溴/bromine
36 Kr 氪/krypton
50 Sn 锡/tin
53 I 碘/iodine
54 Xe 氙/xenon
74 W 钨/tungsten
78 Pt 铂/platinum
80 Hg 汞/mercury
82 Pb 铅/lead
92 U 铀/uranium
"""
"""Atomic number, symbol, name; the best known first."""

PLANETS = """
水星/Mercury 第一/first
金星/Venus 第二/second
地球/Earth 第三/third
火星/Mars 第四/fourth
木星/Jupiter 第五/fifth
土星/Saturn 第六/sixth
天王星/Uranus 第七/seventh
海王星/Neptune 第八/eighth
"""
"""In order from the sun."""

MONTHS = """
一月/January 31
二月/February -
三月/March 31
四月/April 30
五月/May 31
六月/June 30
七月/July 31
八月/August 31
九月/September 30
十月/October 31
十一月/November 30
十二月/December 31
"""
"""In order, with their days; February's depend on the year."""

WEEKDAYS = """
星期一/Monday
星期二/Tuesday
星期三/Wednesday
星期四/Thursday
星期五/Friday
星期六/Saturday
星期日/Sunday
"""

UNITS = """
千米/a kilometre; 米/metres; 1000
米/a metre; 厘米/centimetres; 100
厘米/a centimetre; 毫米/millimetres; 10
米/a metre; 毫米/millimetres; 1000
千克/a kilogram; 克/grams; 1000
吨/a tonne; 千克/kilograms; 1000
克/a gram; 毫克/milligrams; 1000
升/a litre; 毫升/millilitres; 1000
小时/an hour; 分钟/minutes; 60
分钟/a minute; 秒/seconds; 60
天/a day; 小时/hours; 24
周/a week; 天/days; 7
年/a year; 个月/months; 12
世纪/a century; 年/years; 100
"""
"""One of the first holds so many of the second."""
