"""People, places, things and wordings of the stories: tables, and nothing else (see `wordings.py`).

Of an event {x} acts, {y} is the place or thing, {u} the person who is given it. Of a question {x} and {u}
stand in the question and {y} is the answer.
"""

PEOPLE = {
    "zh": "小明 小红 小华 小丽 小刚 小芳 小军 小英 小强 小梅 小杰 小燕",
    "en": "Tom Anna Ben Lucy Jack Emma Sam Kate Leo Mia Max Rosa",
}
PLACES = {
    "zh": "厨房 花园 学校 公园 图书馆 医院 车站 商店 卧室 市场 河边 银行",
    "en": "kitchen garden school park library hospital station shop bedroom market museum bank",
}
THINGS = {
    "zh": "苹果 铅笔 钥匙 雨伞 帽子 书包 足球 杯子 地图 台灯",
    "en": "apple pencil key umbrella hat bag ball cup map lamp",
}
REFUSAL = {"zh": "文中没有说", "en": "The text does not say"}

STORIES = """
# go zh
say {x}去了{y}。
say {x}来到{y}。
say {x}走到{y}。
say {x}跑到{y}。

# go en
say {x} went to {y}.
say {x} came to {y}.
say {x} walked to {y}.
say {x} ran to {y}.

# take zh
say {x}拿起了{y}。
say {x}拿走了{y}。
say {x}捡起了{y}。

# take en
say {x} took {y}.
say {x} picked up {y}.
say {x} grabbed {y}.

# drop zh
say {x}放下了{y}。
say {x}丢下了{y}。

# drop en
say {x} put down {y}.
say {x} dropped {y}.

# give zh
say {x}把{y}给了{u}。
say {x}把{y}交给了{u}。
say {x}把{y}送给了{u}。

# give en
say {x} gave {y} to {u}.
say {x} handed {y} to {u}.
say {x} passed {y} to {u}.

# where_person zh
ask {x}在哪里?
ask {x}现在在哪里?
ask {x}在哪儿?
ask {x}在什么地方?
ask 请问{x}在哪里?
follow {x}呢?
follow 那{x}在哪里?
say {x}在{y}。
say 现在{x}在{y}。

# where_person en
ask Where is {x}?
ask Where is {x} now?
ask In which place is {x}?
ask Which place is {x} in?
ask Can you tell me where {x} is?
follow And {x}?
follow And where is {x}?
say {x} is in {y}.
say Now {x} is in {y}.

# person_in zh
ask 谁在{x}?
ask 谁现在在{x}?
ask 在{x}的人是谁?
say 在{x}的人是{y}。

# person_in en
ask Who is in {x}?
ask Who is in {x} now?
ask Which person is in {x}?
say The person in {x} is {y}.

# who_has zh
ask 谁拿着{x}?
ask {x}在谁手里?
ask 现在谁拿着{x}?
ask {x}在谁那里?
say {x}在{y}手里。
say {x}在{y}那里。

# who_has en
ask Who has {x}?
ask Who has {x} now?
ask Who is holding {x}?
ask Which person has {x}?
say {x} is with {y}.
say The person who has {x} is {y}.

# what_has zh
ask {x}拿着什么?
ask {x}手里有什么?
ask {x}现在拿着什么?
say {x}拿着{y}。
say {x}手里有{y}。

# what_has en
ask What does {x} have?
ask What is {x} holding?
ask What does {x} have now?
say {x} has {y}.
say {x} is holding {y}.

# first_place zh
ask {x}先去了哪里?
ask {x}最先去的是哪里?
ask {x}一开始去了哪里?
say {x}先去了{y}。
say {x}最先去的是{y}。

# first_place en
ask Where did {x} go first?
ask Which place did {x} go to first?
ask What was the first place that {x} went to?
say {x} first went to {y}.
say The first place that {x} went to is {y}.

# given_to zh
ask {x}把{u}给了谁?
ask {x}的{u}给了谁?
ask 谁从{x}那里得到了{u}?
say 从{x}那里得到{u}的是{y}。

# given_to en
ask Who did {x} give {u} to?
ask Who got {u} from {x}?
ask To which person did {x} give {u}?
say The person who got {u} from {x} is {y}.

# where_thing zh
ask {x}在哪里?
ask {x}现在在哪里?
ask {x}在哪儿?
ask {x}在什么地方?
say {x}在{y}。
say 现在{x}在{y}。

# where_thing en
ask Where is {x}?
ask Where is {x} now?
ask In which place is {x}?
ask Which place is {x} in?
say {x} is in {y}.
say Now {x} is in {y}.

# place_before zh
ask {x}去{u}之前在哪里?
ask 去{u}之前，{x}在哪里?
ask {x}在{u}之前去了哪里?
say {x}去{u}之前在{y}。

# place_before en
ask Where was {x} before {u}?
ask Before {u}, where was {x}?
ask Where was {x} before going to {u}?
say Before {u}, {x} was in {y}.
"""
