"""Wordings of calendars, units and sums: a table, and nothing else (`wordings.py` says what a line means)."""

MEASURES = """
# month_days zh
ask {x}有多少天?
ask {x}有几天?
ask {x}一共有多少天?
ask 请问{x}有多少天?
ask 你知道{x}有多少天吗?
ask {x}的天数是多少?
ask 请告诉我{x}的天数。
ask {x}这个月有多少天?
ask 在{x}这个月里，一共有多少天?
held {x}这个月一共有几天?
held 你知道{x}的天数是多少吗?
held 请告诉我{x}有几天。
say {x}有{y}天。
say {x}一共有{y}天。
say {x}这个月有{y}天。
say {x}的天数是{y}。

# month_days en
ask How many days are there in {x}?
ask How many days does {x} have?
ask How many days are in {x}?
ask What is the number of days in {x}?
ask Can you tell me the number of days in {x}?
ask Do you know how many days {x} has?
ask Please tell me how many days there are in {x}.
ask How many days does the month of {x} have?
ask In {x}, how many days are there?
held How many days are in the month of {x}?
held Can you tell me how many days {x} has?
held Do you know the number of days in {x}?
say {x} has {y} days.
say There are {y} days in {x}.
say The month of {x} has {y} days.
say The number of days in {x} is {y}.

# next_month zh
ask {x}之后是几月?
ask {x}的下一个月是几月?
ask {x}过后是几月?
ask {x}后面是哪个月?
ask 请问{x}之后是几月?
ask 你知道{x}之后是哪个月吗?
ask 请告诉我{x}的下一个月。
ask {x}的下个月是几月?
ask 哪个月在{x}之后?
held {x}后面是几月?
held {x}过后是哪个月?
held 哪个月是{x}的下一个月?
say {x}之后是{y}。
say {x}的下一个月是{y}。
say {x}过后是{y}。
say {x}后面是{y}。

# next_month en
ask Which month comes after {x}?
ask What month comes after {x}?
ask Which month follows {x}?
ask What is the month after {x}?
ask What is the next month after {x}?
ask After {x}, which month comes next?
ask Can you tell me the month after {x}?
ask Do you know which month follows {x}?
ask Please name the month after {x}.
held What month follows {x}?
held After {x}, what is the next month?
held Can you name the month after {x}?
say After {x} comes {y}.
say The month after {x} is {y}.
say The next month after {x} is {y}.
say After {x}, the next month is {y}.

# next_weekday zh
ask {x}之后是星期几?
ask {x}过后是星期几?
ask {x}的第二天是星期几?
ask {x}后面是星期几?
ask 请问{x}之后是星期几?
ask 你知道{x}的第二天是星期几吗?
ask 请告诉我{x}之后是星期几。
ask 今天是{x}，明天是星期几?
ask 如果今天是{x}，明天是星期几?
held 你知道{x}过后是星期几吗?
held 请告诉我{x}的第二天是星期几。
held 请问今天是{x}，第二天是星期几?
say {x}之后是{y}。
say {x}过后是{y}。
say {x}的第二天是{y}。
say 今天是{x}，明天是{y}。

# next_weekday en
ask Which day comes after {x}?
ask What day comes after {x}?
ask Which day follows {x}?
ask What is the day after {x}?
ask After {x}, which day comes next?
ask If today is {x}, what day is tomorrow?
ask Can you tell me the day after {x}?
ask Do you know which day follows {x}?
ask Please name the day after {x}.
held What day follows {x}?
held If today is {x}, which day comes next?
held Can you name the day after {x}?
say After {x} comes {y}.
say The day after {x} is {y}.
say The next day after {x} is {y}.
say If today is {x}, tomorrow is {y}.

# unit zh
ask 1{x}等于多少{u}?
ask 1{x}是多少{u}?
ask 1{x}有多少{u}?
ask 一{x}等于多少{u}?
ask 一{x}有多少{u}?
ask 请问1{x}是多少{u}?
ask 你知道1{x}等于多少{u}吗?
ask 请告诉我1{x}等于多少{u}。
ask 多少{u}等于1{x}?
held 一{x}是多少{u}?
held 你知道1{x}有多少{u}吗?
held 请告诉我一{x}是多少{u}。
say 1{x}等于{y}{u}。
say 1{x}是{y}{u}。
say 1{x}有{y}{u}。
say 一{x}等于{y}{u}。

# unit en
ask How many {u} are there in {x}?
ask How many {u} are in {x}?
ask How many {u} does {x} have?
ask What is {x} in {u}?
ask What is the number of {u} in {x}?
ask Can you tell me how many {u} are in {x}?
ask Do you know how many {u} {x} has?
ask Please tell me the number of {u} in {x}.
ask In {x}, how many {u} are there?
held Can you tell me the number of {u} in {x}?
held Do you know how many {u} there are in {x}?
held {x} has how many {u}?
say There are {y} {u} in {x}.
say {x} has {y} {u}.
say {x} is {y} {u}.
say In {x}, there are {y} {u}.

# addition zh
ask {x}加{u}等于几?
ask {x}加{u}等于多少?
ask {x}加{u}是多少?
ask {x}加上{u}等于几?
ask {x}+{u}等于几?
ask {x}+{u}=?
ask {x}与{u}的和是多少?
ask 请问{x}加{u}等于几?
ask 你知道{x}加{u}等于几吗?
held {x}+{u}是多少?
held {x}加上{u}是多少?
held 你知道{x}与{u}的和是多少吗?
say {x}加{u}等于{y}。
say {x}加上{u}是{y}。
say {x}+{u}={y}。
say {x}与{u}的和是{y}。

# addition en
ask What is {x} plus {u}?
ask How much is {x} plus {u}?
ask What is the sum of {x} and {u}?
ask {x} plus {u} is how much?
ask What do you get if you add {x} and {u}?
ask {x} + {u} = ?
ask Can you tell me the sum of {x} and {u}?
ask Do you know what {x} plus {u} is?
ask Please add {x} and {u}.
held How much is the sum of {x} and {u}?
held Can you add {x} and {u}?
held Do you know how much {x} plus {u} is?
say {x} plus {u} is {y}.
say The sum of {x} and {u} is {y}.
say {x} + {u} = {y}.
say If you add {x} and {u}, you get {y}.

# multiplication zh
ask {x}乘以{u}等于几?
ask {x}乘以{u}等于多少?
ask {x}乘以{u}是多少?
ask {x}乘{u}等于几?
ask {x}×{u}等于几?
ask {x}×{u}=?
ask {x}与{u}的积是多少?
ask 请问{x}乘以{u}等于几?
ask 你知道{x}乘以{u}等于几吗?
held {x}×{u}是多少?
held {x}乘{u}是多少?
held 你知道{x}与{u}的积是多少吗?
say {x}乘以{u}等于{y}。
say {x}乘{u}是{y}。
say {x}×{u}={y}。
say {x}与{u}的积是{y}。

# multiplication en
ask What is {x} times {u}?
ask How much is {x} times {u}?
ask What is the product of {x} and {u}?
ask {x} times {u} is how much?
ask What do you get if you multiply {x} by {u}?
ask {x} × {u} = ?
ask Can you tell me the product of {x} and {u}?
ask Do you know what {x} times {u} is?
ask Please multiply {x} by {u}.
held How much is the product of {x} and {u}?
held Can you multiply {x} by {u}?
held Do you know how much {x} times {u} is?
say {x} times {u} is {y}.
say The product of {x} and {u} is {y}.
say {x} × {u} = {y}.
say If you multiply {x} by {u}, you get {y}.
"""
