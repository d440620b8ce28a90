"""Facts about countries: a table, and nothing else.

A row is `country; capital; currency; language`, each `Chinese/English`, under a line that names the
continent. `|` separates further accepted names after the usual one. `-` stands where an answer would be
contested or not single (several main languages, a country on two continents): such a thing is never stated or
asked. The language is the one that most people there speak. Well-known countries come first, because a small
world takes the head. Countries named like their capitals are left out.
"""

COUNTRIES = """
# 欧洲/Europe
法国/France; 巴黎/Paris; 欧元/euro; 法语/French
德国/Germany; 柏林/Berlin; 欧元/euro; 德语/German
英国/the United Kingdom; 伦敦/London; 英镑/pound sterling|pound; 英语/English
# 亚洲/Asia
中国/China; 北京/Beijing; 人民币/renminbi|yuan; 汉语|中文/Chinese
日本/Japan; 东京/Tokyo; 日元/yen|Japanese yen; 日语/Japanese
# 北美洲/North America
美国/the United States; 华盛顿/Washington|Washington, D.C.; 美元/US dollar|dollar; 英语/English
加拿大/Canada; 渥太华/Ottawa; 加元/Canadian dollar; -
# 非洲/Africa
埃及/Egypt; 开罗/Cairo; 埃及镑/Egyptian pound; 阿拉伯语/Arabic
# 南美洲/South America
阿根廷/Argentina; 布宜诺斯艾利斯/Buenos Aires; 阿根廷比索/Argentine peso; 西班牙语/Spanish
# 大洋洲/Oceania
澳大利亚/Australia; 堪培拉/Canberra; 澳元/Australian dollar; 英语/English
# -
俄罗斯/Russia; 莫斯科/Moscow; 卢布/ruble|Russian ruble; 俄语/Russian
土耳其/Turkey; 安卡拉/Ankara; 土耳其里拉/Turkish lira; 土耳其语/Turkish
# 欧洲/Europe
意大利/Italy; 罗马/Rome; 欧元/euro; 意大利语/Italian
西班牙/Spain; 马德里/Madrid; 欧元/euro; 西班牙语/Spanish
葡萄牙/Portugal; 里斯本/Lisbon; 欧元/euro; 葡萄牙语/Portuguese
希腊/Greece; 雅典/Athens; 欧元/euro; 希腊语/Greek
荷兰/the Netherlands; 阿姆斯特丹/Amsterdam; 欧元/euro; 荷兰语/Dutch
瑞典/Sweden; 斯德哥尔摩/Stockholm; 瑞典克朗/Swedish krona; 瑞典语/Swedish
挪威/Norway; 奥斯陆/Oslo; 挪威克朗/Norwegian krone; 挪威语/Norwegian
丹麦/Denmark; 哥本哈根/Copenhagen; 丹麦克朗/Danish krone; 丹麦语/Danish
波兰/Poland; 华沙/Warsaw; 兹罗提/zloty|Polish zloty; 波兰语/Polish
奥地利/Austria; 维也纳/Vienna; 欧元/euro; 德语/German
匈牙利/Hungary; 布达佩斯/Budapest; 福林/forint|Hungarian forint; 匈牙利语/Hungarian
# 亚洲/Asia
韩国/South Korea; 首尔/Seoul; 韩元/won|South Korean won; 韩语/Korean
印度/India; 新德里/New Delhi; 印度卢比/Indian rupee|rupee; -
泰国/Thailand; 曼谷/Bangkok; 泰铢/baht|Thai baht; 泰语/Thai
越南/Vietnam; 河内/Hanoi; 越南盾/dong|Vietnamese dong; 越南语/Vietnamese
马来西亚/Malaysia; 吉隆坡/Kuala Lumpur; 林吉特/ringgit|Malaysian ringgit; 马来语/Malay
伊朗/Iran; 德黑兰/Tehran; 伊朗里亚尔/Iranian rial|rial; 波斯语/Persian
沙特阿拉伯/Saudi Arabia; 利雅得/Riyadh; 沙特里亚尔/Saudi riyal; 阿拉伯语/Arabic
# 南美洲/South America
巴西/Brazil; 巴西利亚/Brasilia; 雷亚尔/real|Brazilian real; 葡萄牙语/Portuguese
智利/Chile; 圣地亚哥/Santiago; 智利比索/Chilean peso; 西班牙语/Spanish
秘鲁/Peru; 利马/Lima; 索尔/sol|Peruvian sol; 西班牙语/Spanish
# 非洲/Africa
肯尼亚/Kenya; 内罗毕/Nairobi; 肯尼亚先令/Kenyan shilling; -
摩洛哥/Morocco; 拉巴特/Rabat; 摩洛哥迪拉姆/Moroccan dirham; 阿拉伯语/Arabic
尼日利亚/Nigeria; 阿布贾/Abuja; 奈拉/naira|Nigerian naira; -
# 大洋洲/Oceania
新西兰/New Zealand; 惠灵顿/Wellington; 新西兰元/New Zealand dollar; -
# 北美洲/North America
古巴/Cuba; 哈瓦那/Havana; 古巴比索/Cuban peso; 西班牙语/Spanish
# 欧洲/Europe
比利时/Belgium; 布鲁塞尔/Brussels; 欧元/euro; -
爱尔兰/Ireland; 都柏林/Dublin; 欧元/euro; -
芬兰/Finland; 赫尔辛基/Helsinki; 欧元/euro; 芬兰语/Finnish
冰岛/Iceland; 雷克雅未克/Reykjavik; 冰岛克朗/Icelandic krona; 冰岛语/Icelandic
捷克/Czechia; 布拉格/Prague; 捷克克朗/Czech koruna; 捷克语/Czech
罗马尼亚/Romania; 布加勒斯特/Bucharest; 罗马尼亚列伊/Romanian leu; 罗马尼亚语/Romanian
塞尔维亚/Serbia; 贝尔格莱德/Belgrade; 塞尔维亚第纳尔/Serbian dinar; 塞尔维亚语/Serbian
乌克兰/Ukraine; 基辅/Kyiv; 格里夫纳/hryvnia|Ukrainian hryvnia; -
# 亚洲/Asia
巴基斯坦/Pakistan; 伊斯兰堡/Islamabad; 巴基斯坦卢比/Pakistani rupee; -
孟加拉国/Bangladesh; 达卡/Dhaka; 塔卡/taka|Bangladeshi taka; 孟加拉语/Bengali
尼泊尔/Nepal; 加德满都/Kathmandu; 尼泊尔卢比/Nepalese rupee; 尼泊尔语/Nepali
老挝/Laos; 万象/Vientiane; 基普/kip|Lao kip; 老挝语/Lao
柬埔寨/Cambodia; 金边/Phnom Penh; 瑞尔/riel|Cambodian riel; 高棉语/Khmer
菲律宾/the Philippines; 马尼拉/Manila; 菲律宾比索/Philippine peso; -
蒙古/Mongolia; 乌兰巴托/Ulaanbaatar; 图格里克/tugrik|Mongolian tugrik; 蒙古语/Mongolian
伊拉克/Iraq; 巴格达/Baghdad; 伊拉克第纳尔/Iraqi dinar; 阿拉伯语/Arabic
约旦/Jordan; 安曼/Amman; 约旦第纳尔/Jordanian dinar; 阿拉伯语/Arabic
# 非洲/Africa
埃塞俄比亚/Ethiopia; 亚的斯亚贝巴/Addis Ababa; 比尔/birr|Ethiopian birr; -
加纳/Ghana; 阿克拉/Accra; 塞地/cedi|Ghanaian cedi; -
安哥拉/Angola; 罗安达/Luanda; 宽扎/kwanza|Angolan kwanza; 葡萄牙语/Portuguese
# 南美洲/South America
哥伦比亚/Colombia; 波哥大/Bogota|Bogotá; 哥伦比亚比索/Colombian peso; 西班牙语/Spanish
委内瑞拉/Venezuela; 加拉加斯/Caracas; 玻利瓦尔/bolivar|Venezuelan bolivar; 西班牙语/Spanish
厄瓜多尔/Ecuador; 基多/Quito; 美元/US dollar|dollar; 西班牙语/Spanish
乌拉圭/Uruguay; 蒙得维的亚/Montevideo; 乌拉圭比索/Uruguayan peso; 西班牙语/Spanish
# 大洋洲/Oceania
斐济/Fiji; 苏瓦/Suva; 斐济元/Fijian dollar; -
# 北美洲/North America
牙买加/Jamaica; 金斯敦/Kingston; 牙买加元/Jamaican dollar; -
"""
