"""Wordings of chemistry and astronomy: a table, and nothing else (`wordings.py` says what a line means)."""

SCIENCE = """
# symbol zh
ask {x}的元素符号是什么?
ask {x}的化学符号是什么?
ask {x}的符号是什么?
ask {x}的元素符号怎么写?
ask 元素{x}的符号是什么?
ask 请问{x}的化学符号是什么?
ask 你知道{x}的元素符号是什么吗?
ask 请写出{x}的元素符号。
ask 化学中{x}用什么符号表示?
held {x}的化学符号怎么写?
held 元素{x}用什么符号表示?
held 请写出元素{x}的化学符号。
follow 它的符号是什么?
follow 它的元素符号怎么写?
follow 那它的符号呢?
say {x}的元素符号是{y}。
say {x}的化学符号是{y}。
say 元素{x}的符号是{y}。
say 化学中{x}用{y}表示。
its 它的符号是{y}。
its 它的元素符号是{y}。
gives {y}是{x}的元素符号。
gives {y}表示{x}。
reverse {y}是哪种元素的符号?
reverse 哪种元素的符号是{y}?
reverse {y}表示哪种元素?
reverse 元素符号是{y}的是什么元素?

# symbol en
ask What is the chemical symbol of {x}?
ask What is the symbol of {x}?
ask What is the symbol for the element {x}?
ask Which symbol stands for {x}?
ask What symbol is used for {x}?
ask Can you tell me the chemical symbol of {x}?
ask Do you know the symbol of {x}?
ask Please write the symbol of {x}.
ask What symbol does {x} have?
held What symbol stands for {x}?
held Can you write the chemical symbol for {x}?
held Which symbol does the element {x} have?
follow What is its symbol?
follow What symbol does it have?
follow And its chemical symbol?
say The symbol of {x} is {y}.
say The chemical symbol of {x} is {y}.
say {x} has the symbol {y}.
say The element {x} has the symbol {y}.
its Its symbol is {y}.
its Its chemical symbol is {y}.
gives {y} is the symbol of {x}.
gives {y} stands for {x}.
reverse {y} is the symbol of which element?
reverse Which element has the symbol {y}?
reverse What element does {y} stand for?
reverse {y} stands for which element?

# atomic_number zh
ask {x}的原子序数是多少?
ask {x}的原子序数是几?
ask 元素{x}的原子序数是多少?
ask 请问{x}的原子序数是多少?
ask {x}是第几号元素?
ask {x}在元素周期表中排第几?
ask 你知道{x}的原子序数是多少吗?
ask 请写出{x}的原子序数。
ask 请告诉我{x}的原子序数。
held 你知道{x}是第几号元素吗?
held 元素{x}的原子序数是几?
held 请告诉我{x}在元素周期表中排第几。
follow 它的原子序数是多少?
follow 它是第几号元素?
follow 那它的原子序数呢?
say {x}的原子序数是{y}。
say 元素{x}的原子序数是{y}。
say {x}是{y}号元素。
say {x}在元素周期表中排第{y}。
its 它的原子序数是{y}。
its 它是{y}号元素。
gives {y}是{x}的原子序数。
gives {y}号元素是{x}。
reverse {y}是哪种元素的原子序数?
reverse 哪种元素的原子序数是{y}?
reverse {y}号元素是什么?
reverse 原子序数是{y}的是什么元素?

# atomic_number en
ask What is the atomic number of {x}?
ask Which atomic number does {x} have?
ask What atomic number does the element {x} have?
ask What number is {x} in the periodic table?
ask How many protons does an atom of {x} have?
ask Can you tell me the atomic number of {x}?
ask Do you know the atomic number of {x}?
ask Please write the atomic number of {x}.
ask What is the number of {x} in the periodic table?
held What number does {x} have in the periodic table?
held What is the atomic number of the element {x}?
held Can you tell me how many protons an atom of {x} has?
follow What is its atomic number?
follow What atomic number does it have?
follow And its atomic number?
say The atomic number of {x} is {y}.
say {x} has the atomic number {y}.
say {x} is number {y} in the periodic table.
say The element {x} has the atomic number {y}.
its Its atomic number is {y}.
its It has the atomic number {y}.
gives {y} is the atomic number of {x}.
gives Element number {y} is {x}.
reverse {y} is the atomic number of which element?
reverse Which element has the atomic number {y}?
reverse Which element is number {y} in the periodic table?
reverse What element has the atomic number {y}?

# planet_order zh
ask {x}是离太阳第几近的行星?
ask {x}离太阳第几近?
ask {x}是太阳系的第几颗行星?
ask 从太阳往外数，{x}是第几颗行星?
ask 从太阳往外数，{x}排第几?
ask 请问{x}是太阳系的第几颗行星?
ask 你知道{x}是离太阳第几近的行星吗?
ask 请告诉我{x}离太阳第几近。
ask 在太阳系的行星中，{x}离太阳第几近?
held 在太阳系的行星中，从太阳往外数{x}排第几?
held 你知道{x}离太阳第几近吗?
held 请告诉我从太阳往外数{x}是第几颗行星。
say {x}是离太阳{y}近的行星。
say {x}是太阳系的{y}颗行星。
say 从太阳往外数，{x}是{y}颗行星。
say 从太阳往外数，{x}排{y}。

# planet_order en
ask Which planet from the sun is {x}?
ask What is the position of {x} from the sun?
ask Counting from the sun, which planet is {x}?
ask In order from the sun, which planet is {x}?
ask What place does {x} have among the planets?
ask Can you tell me the position of {x} among the planets?
ask Do you know the place of {x} in order from the sun?
ask Please tell me the position of {x} from the sun.
ask What is the place of {x} among the planets?
held In order from the sun, what is the position of {x}?
held Counting from the sun, what place does {x} have?
held Do you know the position of {x} among the planets?
say {x} is the {y} planet from the sun.
say Counting from the sun, {x} is the {y} planet.
say In order from the sun, {x} is the {y} planet.
say Among the planets, {x} is the {y} from the sun.
"""
