"""Wordings of the facts about countries: a table, and nothing else (`wordings.py` says what a line means)."""

GEOGRAPHY = """
# capital zh
ask {x}的首都是哪里?
ask {x}的首都是哪座城市?
ask {x}的首都叫什么?
ask {x}的首都在哪里?
ask 请问{x}的首都是哪里?
ask 哪座城市是{x}的首都?
ask 你知道{x}的首都叫什么吗?
ask 请告诉我{x}的首都。
ask {x}以哪座城市为首都?
held {x}的首都是什么城市?
held 你知道哪里是{x}的首都吗?
held 请告诉我{x}的首都是哪座城市。
follow 它的首都是哪里?
follow 它的首都叫什么?
follow 那它的首都呢?
say {x}的首都是{y}。
say {x}的首都叫{y}。
say {x}以{y}为首都。
say {x}的首都是{y}这座城市。
its 它的首都是{y}。
its 首都是{y}。
gives {y}是{x}的首都。
gives {y}这座城市是{x}的首都。
reverse {y}是哪个国家的首都?
reverse 哪个国家的首都是{y}?
reverse {y}这座城市是哪个国家的首都?
reverse 哪个国家以{y}为首都?

# capital en
ask What is the capital of {x}?
ask Which city is the capital of {x}?
ask What city is the capital of {x}?
ask What is the name of the capital of {x}?
ask What is the capital city of {x}?
ask Can you tell me the capital of {x}?
ask Please tell me the capital city of {x}.
ask Do you know the capital of {x}?
ask Name the capital of {x}.
ask In {x}, which city is the capital?
held Which city is the capital city of {x}?
held Can you name the capital of {x}?
held In {x}, what is the name of the capital?
follow What is its capital?
follow Which city is its capital?
follow And its capital?
say The capital of {x} is {y}.
say The capital city of {x} is {y}.
say {x} has {y} as its capital.
say In {x}, the capital is {y}.
its Its capital is {y}.
its The capital is {y}.
gives {y} is the capital of {x}.
gives {y} is the capital city of {x}.
reverse {y} is the capital of which country?
reverse Which country has {y} as its capital?
reverse What country is {y} the capital of?
reverse {y} is the capital city of which country?

# continent zh
ask {x}在哪个洲?
ask {x}位于哪个洲?
ask {x}属于哪个洲?
ask {x}在哪个大洲?
ask 请问{x}位于哪个大洲?
ask 你知道{x}在哪个洲吗?
ask {x}是哪个洲的国家?
ask 请告诉我{x}在哪个洲。
ask {x}这个国家在哪个洲?
held 你知道{x}位于哪个大洲吗?
held {x}是哪个大洲的国家?
held 请告诉我{x}这个国家属于哪个洲。
follow 它在哪个洲?
follow 它位于哪个洲?
follow 那它在哪个洲呢?
say {x}在{y}。
say {x}位于{y}。
say {x}是{y}的国家。
say {x}这个国家在{y}。
its 这个国家在{y}。
its 这个国家位于{y}。

# continent en
ask Which continent is {x} in?
ask What continent is {x} in?
ask On which continent is {x}?
ask What continent does {x} belong to?
ask Can you tell me which continent {x} is in?
ask {x} is in which continent?
ask What is the continent of {x}?
ask Do you know the continent of {x}?
ask Please tell me the continent of {x}.
held Which continent does {x} belong to?
held Do you know which continent {x} is in?
held On what continent is {x}?
follow Which continent is it in?
follow What continent does it belong to?
follow And its continent?
say {x} is in {y}.
say {x} is a country in {y}.
say {x} belongs to the continent of {y}.
say The continent of {x} is {y}.
its The country is in {y}.
its It is a country in {y}.

# currency zh
ask {x}的货币是什么?
ask {x}的货币叫什么?
ask {x}使用什么货币?
ask {x}用什么货币?
ask 请问{x}的货币是什么?
ask 你知道{x}用什么货币吗?
ask 请告诉我{x}的货币。
ask {x}用的是哪种货币?
ask 在{x}，人们用什么货币?
held {x}使用的是哪种货币?
held 你知道{x}的货币叫什么吗?
held 请告诉我在{x}人们用什么货币。
follow 它的货币是什么?
follow 它用什么货币?
follow 那它的货币呢?
say {x}的货币是{y}。
say {x}的货币叫{y}。
say {x}使用{y}。
say 在{x}，人们用{y}。
its 它的货币是{y}。
its 这个国家使用{y}。

# currency en
ask What is the currency of {x}?
ask What currency is used in {x}?
ask Which currency is used in {x}?
ask What currency does {x} use?
ask Which currency do people use in {x}?
ask What is the name of the currency of {x}?
ask Can you tell me the currency of {x}?
ask Do you know the currency of {x}?
ask Please name the currency of {x}.
ask In {x}, what currency do people use?
held Which currency does {x} use?
held In {x}, what currency is used?
held Can you name the currency of {x}?
follow What is its currency?
follow What currency does it use?
follow And its currency?
say The currency of {x} is the {y}.
say {x} uses the {y}.
say People in {x} use the {y}.
say In {x}, people use the {y}.
its Its currency is the {y}.
its The country uses the {y}.

# language zh
ask {x}人说什么语言?
ask {x}人讲什么语言?
ask {x}主要说什么语言?
ask {x}的主要语言是什么?
ask 在{x}，人们说什么语言?
ask 请问{x}人说什么语言?
ask 你知道{x}人说什么语言吗?
ask 请告诉我{x}的主要语言。
ask {x}人主要说哪种语言?
held {x}主要讲什么语言?
held 在{x}，人们讲哪种语言?
held 你知道{x}的主要语言是什么吗?
follow 它的主要语言是什么?
follow 那里的人说什么语言?
follow 那它的语言呢?
say {x}人说{y}。
say {x}人主要讲{y}。
say {x}的主要语言是{y}。
say 在{x}，人们说{y}。
its 它的主要语言是{y}。
its 那里的人说{y}。

# language en
ask What language do people speak in {x}?
ask What language is spoken in {x}?
ask Which language is spoken in {x}?
ask What is the main language of {x}?
ask In {x}, what language do people speak?
ask Can you tell me the main language of {x}?
ask Do you know what language people speak in {x}?
ask Please name the main language of {x}.
ask Which language do most people speak in {x}?
held In {x}, which language is spoken?
held What language do most people in {x} speak?
held Which language is the main language of {x}?
follow What is its main language?
follow What language do people speak there?
follow And its language?
say People in {x} speak {y}.
say The main language of {x} is {y}.
say In {x}, people speak {y}.
say Most people in {x} speak {y}.
its Its main language is {y}.
its People there speak {y}.

# country zh
ask 介绍一下{x}。
ask 请介绍{x}。
ask 说说{x}这个国家。

# country en
ask Tell me about {x}.
ask Please tell me about {x}.
ask What do you know about {x}?
"""
