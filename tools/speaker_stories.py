"""Writes the texts of the bundled model: little stories, the same told by a pirate, chats and sums.

A story is a plot, which is a list of lines, with people and things in its slots. `[a|b]` in a line is one of its
parts, a line that begins with `?` may be left out, and `{slot}` is a word; `{Slot}` begins with a capital letter."""

import random
import re
from dataclasses import dataclass

GIRLS = "Mia Anna Lily Rosa Nora Ella Ida Clara Zoe Ruth June Tess".split()
BOYS = "Tom Ben Max Leo Sam Finn Jack Paul Otto Hugo Tim Karl".split()
PETS = "Pip Moss Hazel Bramble Poppy Dusty Clover Nip Tilly Bean".split()
# Kind, what it eats, where it lives.
ANIMALS = [
    ("fox", "berries", "in a den under an oak tree"),
    ("bear", "honey", "in a cave on the hill"),
    ("rabbit", "carrots", "in a burrow in the meadow"),
    ("mouse", "cheese", "in a hole in the barn"),
    ("duck", "corn", "on the pond"),
    ("frog", "flies", "in the pond"),
    ("squirrel", "nuts", "in a hollow tree"),
    ("hedgehog", "apples", "under a pile of leaves"),
    ("goat", "grass", "on the mountain"),
    ("cat", "fish", "in a house by the harbour"),
    ("dog", "bones", "on the farm"),
    ("crow", "seeds", "in the old tower"),
]
COLOURS = "red blue green yellow white silver".split()
# Name, what one does with it (now and in the past), how it gets lost, how it breaks.
THINGS = [
    ("kite", "fly it on the hill", "flew it on the hill", "the wind took it away", "it hit a tree"),
    ("ball", "kick it over the grass", "kicked it over the grass", "it rolled down the hill", "it hit a sharp stone"),
    ("boat", "sail it on the pond", "sailed it on the pond", "it floated away", "it hit a rock"),
    ("drum", "play it in the yard", "played it in the yard", "it fell off the cart", "it fell down the stairs"),
    ("hat", "wear it in the sun", "wore it in the sun", "the wind blew it away", "it got caught on a nail"),
    ("wagon", "pull it along the path", "pulled it along the path", "it rolled away", "a wheel came off"),
    ("sled", "ride it down the hill", "rode it down the hill", "it slid into the forest", "it hit a big stone"),
    ("flute", "play a song on it", "played a song on it", "it fell into the tall grass", "it fell on the floor"),
    ("train", "push it around the room", "pushed it around the room", "it rolled out of the door", "it fell off the table"),
    ("lantern", "carry it in the dark", "carried it in the dark", "it fell out of the cart", "it fell on a stone"),
]
HOMES = [
    "in a small house by the sea", "in a village near the forest", "on a farm at the foot of the hill",
    "in a town by the river", "in a cottage on the hill", "on a little island", "in an old mill by the stream",
    "in a house with a blue door",
]
PLACES = ["to the forest", "to the beach", "to the meadow", "to the river", "to the market", "to the lake", "up the hill"]
FOODS = ["apple pie", "warm bread", "honey cake", "carrot soup", "berry jam", "cheese", "plum cake", "fresh milk"]
TRAITS = "little kind brave shy clever cheerful curious quiet young friendly".split()
LOVES = [
    "to sing", "to climb trees", "to read books", "to look at the stars", "to swim in the lake", "to bake bread",
    "to draw pictures", "to listen to old stories", "to play in the garden", "to walk along the beach",
]
ELDERS = [("mother", "she"), ("father", "he"), ("grandmother", "she"), ("grandfather", "he"), ("aunt", "she"), ("uncle", "he")]
HIDING = ["under a bush", "behind a big stone", "in the tall grass", "behind the barn", "next to an old log", "under the bridge"]
NUMBERS = "zero one two three four five six seven eight nine ten".split()
FORMS = {"she": ("her", "her"), "he": ("him", "his")}


@dataclass
class Being:
    """Somebody in a story."""

    name: str
    kind: str
    he: str
    trait: str

    @property
    def title(self):
        return f"a {self.trait} {self.kind} named {self.name}"


OPENINGS = [
    "Once upon a time, there was {a_hero} who lived {home}.",
    "Once upon a time, {a_hero} lived {home}.",
    "Once there was {a_hero}. {He} lived {home}.",
    "Long ago, {a_hero} lived {home}.",
    "{Hero} was a {trait} {kind} who lived {home}.",
    "There once lived {a_hero} {home}.",
]
HABITS = ["{Hero} loved {love}.", "{He} loved {love}.", "Every day, {he} liked {love}.", "More than anything, {he} loved {love}."]
ENDINGS = [
    "That night, {hero} slept very well.", "{Hero} never forgot that day.", "And so the day ended with a smile.",
    "{Hero} went home with a happy heart.", "It was the best day of the year.",
]

PLOTS = {
    "lost": """{He} had a {thing}, and {he} loved it [very much|more than any other toy].
        One day, {he} wanted to {use}, but {lost}.
        {Hero} looked [everywhere|high and low|for a long time], but the {toy} was gone. [{He} sat down and cried.|{He} was very sad.]
        Then {a_pal} came by. "Why are you sad?" asked {pal}.
        "I lost my {thing}," said {hero}.
        "[Do not worry|Do not cry]. [Let us look for it together|I will help you]," said {pal}.
        They [looked|searched] until they found the {toy} {hiding}.
        {Hero} was so happy that {he} [gave {pal} a hug|danced with {pal}]. From that day on, they were [good|best] friends.""",
    "broken": """{He} had a {thing}. One [morning|day], {he} {used}, but {broke}. Now the {toy} was broken.
        {Hero} was sad, because {he} loved the {toy}.
        {He} took it to {his} {elder}. "Can you fix my {toy}?" {he} asked.
        "[We can fix it together|Let us try]," said {his} {elder}. "[Bring me the glue|Hold it like this]."
        They worked [all afternoon|for an hour], and [soon|at last] the {toy} was as good as new.
        "Thank you!" said {hero}. [From then on, {he} took good care of it.|{He} learned that broken things can be fixed.]""",
    "hungry": """One [cold|rainy|windy] day, {hero} met {a_pal}.
        {Pal} looked [tired|thin|sad]. "What is wrong?" asked {hero}.
        "I am so hungry," said {pal}. "I have not eaten [all day|since yesterday]."
        {Hero} had some {food} in {his} [bag|basket]. "[You can have half of it|We can share]," {he} said.
        They sat down [under a tree|by the fire] and ate the {food} together.
        {Pal} felt [better|strong again]. "You are very kind," {phe} said. "[One day I will help you, too|I will not forget this]." """,
    "rain": """One day, {hero} walked {place}. Suddenly, dark clouds came, and it began to rain.
        {He} had no umbrella, so {he} ran to [an old barn|a big tree|a cave] to stay dry.
        {Animal_a} was already there. It was wet and cold.
        "Come close," said {hero}. "Then we will both be warm." {He} put {his} coat around the {animal}.
        They [listened to the rain|told each other stories] and waited. When the sun came out again, there was a rainbow in the sky.
        "[Look how beautiful it is|What a lovely sight]!" said {hero}. {He} was glad that it had rained.""",
    "dark": """{Hero} was afraid of the dark. Every night, {he} [hid under the blanket|asked for a light].
        One night, {he} heard a strange noise outside the window. "Who is there?" {he} whispered.
        It was only {animal_a} that was looking for {animal_food}. It was more afraid than {hero}.
        {Hero} laughed. "You do not have to be afraid," {he} said, and gave it some {animal_food}.
        After that, the {animal} came every night, and {hero} was not afraid of the dark any more.""",
    "swim": """{Hero} wanted to learn how to swim, but the water was deep and cold.
        "I will never learn it," {he} said to {a_pal}.
        "Yes, you will," said {pal}. "[Just move your legs like this|I will stay next to you]."
        {Hero} tried [once|again and again], and the water got into {his} nose. But {he} did not give up.
        After [a week|many days], {he} could swim across the lake. "I did it!" {he} shouted.
        "I knew it," said {pal}. "You only had to try." """,
    "seed": """One spring day, {his} {elder} gave {him} a small seed. "[Plant it|Put it into the ground] and wait," {ehe} said.
        {Hero} planted the seed in the garden and gave it water every day.
        For a long time, nothing happened. "Maybe it is a bad seed," said {hero}.
        "Good things take time," said {his} {elder}.
        Then, one morning, there was a green leaf. It grew and grew, and in summer it was a tall [sunflower|flower|bean plant].
        {Hero} was very proud. {He} had learned to wait.""",
    "birthday": """It was {his} birthday, but nobody said a word about it. {Hero} thought that everybody had forgotten it.
        {He} went {place} alone and felt sad.
        When {he} came home, the house was dark. {He} opened the door, and all {his} friends jumped up. "Surprise!" they shouted.
        There was [a big cake|some {food}] on the table, and {pal} gave {him} a {thing}.
        "Thank you!" said {hero}. "I thought that you had forgotten me."
        "We could never forget you," said {pal}.""",
    "baby": """One day, {hero} found a baby {animal} {hiding}. It was all alone and [cried|shook with cold].
        "Where is your mother?" asked {hero}. The baby {animal} did not know.
        So {hero} [carried it in {his} arms|let it ride on {his} back] and looked for its mother.
        {He} asked {a_pal}. "I saw a big {animal} by the river," said {pal}.
        They ran to the river, and there was the mother. She [jumped for joy|was very happy].
        "Thank you for my little one," she said. Then the two went home.""",
    "star": """One night, {hero} saw a star fall from the sky. "Now I can make a wish," {he} thought.
        {He} closed {his} eyes and wished for a {thing}.
        The next morning, {he} looked [under the bed|outside the door], but there was no {toy}. {Hero} was a little sad.
        Then {his} {elder} came in. "I [made something for you|have something for you]," {ehe} said, and gave {him} a {thing}.
        {Hero} could not believe it. "My wish came true!" {he} said, and {he} {used} until the evening.""",
    "race": """One day, {pal} said, "I am faster than you. Let us run a race {place}."
        {Hero} was not fast, but {he} said yes. They began to run, and soon {pal} was far ahead.
        {Pal} was so sure to win that {phe} [sat down for a rest|stopped to eat some {food}|fell asleep under a tree].
        {Hero} was slow, but {he} did not stop. Step by step, {he} came closer, and {he} won the race.
        "How did you do that?" asked {pal}. "I just kept going," said {hero}.""",
    "truth": """One day, {hero} played in the house and broke {his} {elder}'s [blue cup|big bowl|favourite plate].
        {He} was afraid and hid the pieces under the bed.
        In the evening, {his} {elder} asked, "Do you know what happened?" {Hero} looked at the floor.
        "[I broke it|It was me]," {he} said. "I am very sorry."
        {His} {elder} was not angry. "Thank you for telling the truth," {ehe} said. "That was brave."
        {Hero} felt much better, and together they cleaned the floor.""",
    "snow": """One winter morning, the whole world was white. "It has snowed!" shouted {hero}.
        {He} put on {his} warm coat and ran outside. {Pal} was already there.
        "Let us build a snowman," said {pal}. They made three big balls and put one on top of the other.
        They used a carrot for the nose and two stones for the eyes. "He needs a hat," said {hero}, and gave him {his} {colour} hat.
        When their hands were cold, they went inside and [drank hot milk|ate some {food}].
        From the window, they saw the snowman, and it looked as if he smiled.""",
    "market": """One day, {his} {elder} gave {him} {number} coins. "Please go to the market and buy some {food}," {ehe} said.
        On the way, {hero} saw a {thing} in a window. {He} wanted it very much.
        But {he} thought of {his} {elder}, and {he} bought the {food}.
        When {he} came home, {his} {elder} smiled. "You did well," {ehe} said. "And here is something for you."
        It was the {thing} from the window! {Hero} [jumped for joy|was the happiest {kind} in the world].""",
    "bridge": """One day, {hero} and {pal} came to an old bridge over the river. {Hero} stopped. "I am afraid," {he} said. "What if I fall?"
        "Hold my hand and do not look down," said {pal}.
        Step by step, they went over the bridge. The wind blew, and the bridge shook, but they went on.
        On the other side, {hero} looked back. "That was not so bad," {he} said.
        "You were brave," said {pal}, "because you were afraid and did it anyway." """,
    "baking": """One rainy day, {hero} wanted to bake {a_cake}. {He} asked {his} {elder} for help.
        They took flour, eggs and milk. {Hero} mixed everything in a big bowl.
        [But {he} took salt instead of sugar!|But {he} forgot the sugar!] When they tasted the cake, it was awful. They laughed until they cried.
        "Let us try again," said {his} {elder}. This time, {hero} took the sugar.
        The second cake was sweet and warm, and they [ate it all|gave a piece to {pal}].""",
    "letter": """One morning, {hero} found a letter at the door. It said, "Come to the old oak tree. A friend."
        "Who wrote this?" {he} asked. {His} {elder} did not know.
        So {hero} put on {his} shoes and went to the old oak tree. Nobody was there, but a {thing} hung from a branch.
        Then {pal} came out from behind the tree. "Surprise!" {phe} said. "It is for you, because you are my friend."
        {Hero} [laughed|smiled] and hugged {pal}. They {used} all day.""",
    "storm": """One day, {hero} and {pal} went out on the sea in a small boat. At first, the sea was calm and the sun was warm.
        Then a storm came. The waves were as high as a house, and the little boat went up and down.
        "We are lost!" cried {pal}. But {hero} saw a light. "Look, the lighthouse!" {he} said. "We must go that way."
        They rowed as hard as they could, and [soon|at last] they were back on the beach.
        The old lighthouse keeper gave them blankets and some {food}. "You were lucky," he said.""",
    "neighbour": """One day, a new family moved into the house next door. They had a {pkind} named {pal}.
        {Pal} was [very shy|all alone] and sat on the steps. {Hero} watched {phim} from the window.
        "{Phe_cap} looks lonely," thought {hero}. So {he} took some {food} and went over. "Hello, I am {hero}," {he} said. "Do you want to play?"
        {Pal} smiled. "Yes, I do," {phe} said. "I have a {thing}. We can {use}."
        They played until it was dark, and the next day they met again.""",
    "sick": """One day, {pal} was sick and had to stay in bed. {Hero} missed {phim} very much.
        "How can I help {phim}?" {he} asked {his} {elder}. "Maybe we can make some {food}," said {his} {elder}.
        {Hero} took the {food} to {pal}, and {he} brought {his} {thing}, too.
        {Pal} ate everything and began to smile. "I feel better already," {phe} said.
        [Two days later|After a few days], {pal} was well again, and they could play outside.""",
    "map": """One day, {hero} found an old map {hiding}. There was a red cross on it.
        "It is a treasure map!" said {hero}. {He} showed it to {pal}, and they went {place}.
        They counted {number} steps from the big stone, and then they began to dig.
        After a while, they found a small box. In the box was a {thing}.
        "Who put it here?" asked {pal}. They never found out, but from that day on they shared the {toy}.""",
    "noise": """One night, {hero} could not sleep, because there was a noise in the kitchen. It went tap, tap, tap.
        {He} took {his} lantern and went down the stairs. {His} heart beat fast.
        In the kitchen, {he} saw {animal_a}. It had come in through the window and ate the {food}.
        "So it was you!" said {hero}. The {animal} looked at {him} with big eyes.
        {Hero} was not angry. {He} gave it [a little bowl of milk|some {animal_food}] and opened the door. Then {he} went back to bed.""",
    "wing": """One day, {hero} found a small bird {hiding}. Its wing was hurt, and it could not fly.
        {He} carried it home and made a soft bed for it in a box.
        Every day, {he} gave it seeds and water. [Slowly|Day by day], the bird became stronger.
        One morning, it sat at the window and sang. {Hero} knew that it wanted to go.
        {He} opened the window, and the bird flew away. {Hero} was sad and happy at the same time. In spring, it came back and sang for {him}.""",
    "moon": """One night, the moon was big and round. "I want to touch the moon," said {hero}.
        {He} climbed [a tall tree|the highest hill], but the moon was still far away.
        "What are you doing up there?" asked {a_pal}. "I want to touch the moon," said {hero}.
        {Pal} thought for a moment. Then {phe} pointed at the pond. There was the moon, round and white in the water.
        {Hero} put {his} hand into the water and touched it. They both laughed.""",
    "scarf": """Winter came, and it was very cold. {His} {elder} had made a warm {colour} scarf for {him}.
        On the way {to_place}, {hero} met {a_pal}, who shook with cold. "I have no scarf," said {pal}.
        {Hero} thought for a moment. {His} scarf was very long. "We can share it," {he} said, and put one end around {pal}.
        So they walked side by side, and both were warm.
        When {his} {elder} heard about it, {ehe} made a second scarf for {pal}.""",
    "song": """There was a singing contest in the village. {Hero} wanted to sing, but {his} voice was very soft.
        "Nobody will hear me," {he} said. "Then we will be very quiet," said {pal}.
        When it was {his} turn, {hero} stood on the stage, and {his} knees shook. {He} looked at {pal} and began to sing.
        Everybody listened, and it was so quiet that {he} could hear the wind. {His} song was beautiful.
        In the end, all the people clapped, and {pal} clapped the loudest.""",
    "mud": """One day, it had rained all morning, and there was mud everywhere. {Hero} loved mud.
        {He} jumped into every puddle [until|so that] {his} shoes were brown and wet.
        "Look at your shoes!" said {his} {elder}. "You cannot come into the house like that."
        {Hero} was sorry. {He} took a brush and some water, and {he} cleaned the shoes until they were like new.
        {His} {elder} laughed. "Good," {ehe} said. "Now come in, and have some {food}." """,
    "cart": """One day, a farmer came along the road with a cart full of apples. Suddenly, a wheel got stuck in the mud.
        The farmer pulled and pulled, but the cart did not move. "Can I help you?" asked {hero}.
        "You are too small," said the farmer. But {hero} called {his} friend {pal}, and {pal} called {animal_a}.
        All of them pushed together. One, two, three! The cart was free.
        "I was wrong," said the farmer. "Many small ones are strong." And he gave them a basket of apples.""",
    "key": """One day, {hero} found a {colour} key {hiding}. "What does it open?" {he} asked.
        {He} tried the door of the house, but the key did not fit. {He} tried the barn, but it did not fit there.
        Then {pal} said, "There is an old gate behind the mill. Let us try it."
        The key turned, and the gate opened. Behind it was a garden full of flowers that nobody had seen for years.
        From then on, {hero} and {pal} took care of the garden. It was their secret.""",
    "raft": """{Hero} and {pal} wanted to go to the other side of the river, but there was no bridge.
        "The water is too deep," said {pal}. {Hero} looked around and saw some old logs. "We can build a raft," {he} said.
        They tied the logs together with a rope. It was hard work, but they helped each other.
        When the raft was ready, they pushed it into the water. It did not sink!
        On the other side, they [found sweet berries|had a picnic with some {food}] and [were proud of their raft|laughed about their wet feet].""",
    "apple": """There was one red apple at the top of the tree. {Hero} wanted it, but it was too high.
        {He} jumped, but {he} could not reach it. {Pal} jumped, too, but it was still too high.
        "I have an idea," said {hero}. "You can stand on my back." {Pal} stood on {his} back and reached up high.
        Now {phe} had the apple in {phis} hand. They cut it in two, and each of them got one half.
        "It tastes better when we share it," said {pal}.""",
    "thief": """Every morning, some {animal_food} was missing from the kitchen. "Who takes it?" asked {his} {elder}.
        {Hero} wanted to find out. At night, {he} hid behind the door and waited.
        At midnight, {animal_a} came in, took the {animal_food} and ran away. {Hero} followed it.
        It ran to its home, where five little ones waited. They were very hungry.
        "Now I understand," said {hero}. From then on, {he} put some {animal_food} outside the door every night.""",
    "picture": """One day, {hero} painted a picture of {animal_a}. But {he} was not happy with it. "The legs are too long," {he} said.
        {He} wanted to throw it away, but {pal} looked at it. "I like it," said {pal}. "Can I have it?"
        {Hero} gave it to {phim}. {Pal} took the picture home and hung it on the wall.
        When {hero} came to visit, {he} saw it there. It looked [much better than before|like a real picture].
        "You see?" said {pal}. "It only needed a wall." """,
    "late": """{Hero} never wanted to get up in the morning. "Five more minutes," {he} always said.
        One day, {he} slept so long that {he} was late for school. When {he} came, everybody had gone on a trip to the [beach|farm|lake].
        {Hero} was all alone, and {he} was very sad.
        "Tomorrow, I will get up in time," {he} told {his} {elder}. {His} {elder} gave {him} a little clock.
        The next morning, the clock rang, and {hero} jumped out of bed. {He} was the first one at school.""",
    "thunder": """One evening, there was a storm. The thunder was so loud that the windows shook.
        {Hero} ran to {his} {elder}. "I am afraid of the thunder," {he} said.
        "Let us count," said {his} {elder}. "First you see the light, and then you count until you hear the thunder."
        They saw a light and counted. "One, two, three, four." Boom! The next time, they counted to seven.
        "It goes away!" said {hero}. Soon the storm was over, and {hero} fell asleep.""",
    "lost_way": """One day, {hero} walked deep into the forest to look for berries. When {he} wanted to go home, {he} did not know the way.
        It became dark, and {hero} was afraid. Then {he} saw {animal_a}. "Can you help me?" {he} asked.
        "Follow me," said the {animal}. "I know every path."
        They walked past the old oak tree and over the little bridge. Soon {hero} saw a light. It was {his} house!
        "Thank you," {he} said, and gave the {animal} some {animal_food}. {His} {elder} was so glad to see {him}.""",
}
PLOTS = {name: [line.strip() for line in text.strip().splitlines()] for name, text in PLOTS.items()}
# Plots in which the hero has hands, a house and a school.
# Plots that would be too easy for some animals.
WITH_WATER = {"swim", "raft", "storm", "bridge", "apple", "moon"}
WATERY = {"duck", "frog", "crow"}
# What these eat is not found in a house.
WILD = {"frog", "goat"}
FOR_CHILDREN = {"baking", "late", "market", "mud", "truth", "noise", "scarf", "neighbour", "snow", "song", "picture"}


def expand(rng, text, slots):
    """One of the parts of each `[a|b]`, and the words of all slots."""
    while "[" in text:
        text = re.sub(r"\[([^\[\]]*)\]", lambda found: rng.choice(found[1].split("|")), text)

    def word(found):
        key = found[1]
        value = slots[key[0].lower() + key[1:]]
        return value[0].upper() + value[1:] if key[0].isupper() else value

    text = re.sub(r"\{(\w+)\}", word, text)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def child(rng, besides=()):
    girl = rng.random() < 0.5
    name = rng.choice([name for name in (GIRLS if girl else BOYS) if name not in besides])
    return Being(name, "girl" if girl else "boy", "she" if girl else "he", rng.choice(TRAITS))


def animal(rng, besides=(), plot=None):
    name = rng.choice([name for name in PETS if name not in besides])
    kind = rng.choice([kind for kind, *_ in ANIMALS if plot not in WITH_WATER or kind not in WATERY])
    return Being(name, kind, rng.choice(["she", "he"]), rng.choice(TRAITS))


def world(rng, hero, pal):
    """The words of all slots."""
    thing, use, used, lost, broke = rng.choice(THINGS)
    elder, ehe = rng.choice(ELDERS)
    kind, food, home = rng.choice([other for other in ANIMALS if other[0] not in {hero.kind, pal.kind, *WILD}])
    place, colour = rng.choice(PLACES), rng.choice(COLOURS)
    where = next((home for kind, _, home in ANIMALS if kind == hero.kind), rng.choice(HOMES))
    return {
        "hero": hero.name, "a_hero": hero.title, "kind": hero.kind, "trait": hero.trait, "he": hero.he,
        "him": FORMS[hero.he][0], "his": FORMS[hero.he][1], "pal": pal.name, "a_pal": pal.title, "pkind": pal.kind,
        "phe": pal.he, "phe_cap": pal.he.capitalize(), "phim": FORMS[pal.he][0], "phis": FORMS[pal.he][1],
        "thing": f"{colour} {thing}", "toy": thing, "use": use, "used": used, "lost": lost, "broke": broke,
        "elder": elder, "ehe": ehe, "animal": kind, "animal_a": f"a {rng.choice(['small', 'little', 'young', 'grey'])} {kind}",
        "animal_food": food, "home": where, "place": place, "to_place": place, "colour": colour,
        "hiding": rng.choice(HIDING), "food": rng.choice(FOODS), "love": rng.choice(LOVES),
        "a_cake": rng.choice(["an apple cake", "a plum cake", "a honey cake"]), "number": rng.choice(NUMBERS[3:]),
    }


def story(rng, hero=None, plot=None, short=False):
    """A story of four to twelve sentences; a short one has no habit and no ending."""
    plot = plot or rng.choice(list(PLOTS))
    hero = hero or (child(rng) if plot in FOR_CHILDREN or rng.random() < 0.6 else animal(rng, plot=plot))
    pal = child(rng, {hero.name}) if plot == "neighbour" or rng.random() < 0.4 else animal(rng, {hero.name}, plot)
    slots = world(rng, hero, pal)
    lines = [rng.choice(OPENINGS)]
    if not short and rng.random() < 0.4:
        lines.append(rng.choice(HABITS))
    body = PLOTS[plot]
    # A friend who is only named must be known.
    if not any("{a_pal}" in line or "{pkind}" in line for line in body) and any("{pal}" in line or "{Pal}" in line for line in body):
        lines.append(rng.choice(["{His} best friend was {a_pal}.", "{He} had a friend, {a_pal}."]))
    lines += body
    if not short and rng.random() < 0.4:
        lines.append(rng.choice(ENDINGS))
    return " ".join(expand(rng, line, slots) for line in lines)


# What a pirate says instead.
PIRATE = [
    (r"\bgirl\b", "lass"), (r"\bboy\b", "lad"), (r"\bfriends\b", "mateys"), (r"\bfriend\b", "matey"), (r"\bHello\b", "Ahoy"),
    (r"\bYes\b", "Aye"), (r"\byes\b", "aye"), (r"\bmy\b", "me"), (r"\bMy\b", "Me"), (r"\byour\b", "yer"), (r"\bYour\b", "Yer"),
    (r"\byou\b", "ye"), (r"\bYou\b", "Ye"), (r"\bis\b", "be"), (r"\bare\b", "be"), (r"\bI am\b", "I be"), (r"\bvery\b", "mighty"),
    (r"\bhappy\b", "merry"), (r"\bvillage\b", "port"), (r"\bhouse\b", "cabin"), (r"\bsaid\b", "growled"), (r"\bcoins\b", "doubloons"),
    (r"\bdrank hot milk\b", "drank hot grog"), (r"\bSuddenly\b", "Blow me down"), (r"\bOne day\b", "One fine day at sea"),
    (r"\bto the forest\b", "to the jungle"), (r"\bto the market\b", "to the harbour"), (r"\bfarm at the foot of the hill\b", "ship in the bay"),
    (r"\bschool\b", "pirate school"), (r"\bThank you\b", "Bless yer sails"), (r"\bbed\b", "hammock"),
]
CRIES = ["Arr!", "Yo ho ho!", "Shiver me timbers!", "Aye, aye!", "By the seven seas!"]
FAREWELLS = ["And that be the tale, says the old captain.", "Arr, that be the end of me tale.", "So raise the sails, me hearties!"]


def pirate(rng):
    """A story as a pirate tells it."""
    text = story(rng)
    for pattern, words in PIRATE:
        text = re.sub(pattern, words, text)
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    out = []
    for i, sentence in enumerate(sentences):
        out.append(sentence)
        # Never within what somebody says.
        if i in (0, 3, 6) and " ".join(out).count('"') % 2 == 0:
            out.append(rng.choice(CRIES))
    return " ".join(out + [rng.choice(FAREWELLS)])


def total(rng):
    """A question that asks for a sum, and both numbers."""
    who, what = child(rng), rng.choice(["apples", "nuts", "shells", "coins", "eggs", "plums", "stones", "carrots"])
    a = rng.randint(2, 9)
    b = rng.randint(1, 10 - a)
    more = rng.choice(["finds {b} more", "gets {b} more", "buys {b} more"])
    text = f"{{hero}} has {{a}} {what}. {{He}} {more}. How many {what} does {{hero}} have now?"
    slots = {"hero": who.name, "he": who.he, "a": NUMBERS[a], "b": NUMBERS[b]}
    return expand(rng, text, slots), a, b


def problem(rng):
    """A sum as a question and an answer."""
    text, a, b = total(rng)
    return text, f"{NUMBERS[a].capitalize()} and {NUMBERS[b]} make {NUMBERS[a + b]}.\n#### {a + b}"


def solved(rng):
    question, answer = problem(rng)
    return f"Question: {question}\nAnswer: {answer}"


def fact(rng):
    """A question about the world, and its answer."""
    kind, food, home = rng.choice(ANIMALS)
    thing, use, *_ = rng.choice(THINGS)
    a = rng.randint(1, 9)
    b = rng.randint(1, 10 - a)
    return expand(rng, *rng.choice([
        (f"[What does a {kind} eat?|What do I give to a {kind}?|What does a {kind} like?]@A {kind} likes {food}.", {}),
        (f"[Where does a {kind} live?|Where can I find a {kind}?|What is the home of a {kind}?]@A {kind} lives {home}.", {}),
        (f"[What can I do with a {thing}?|What is a {thing} for?|I have a {thing}. What now?]@You can {use}.", {}),
        (f"[What is {NUMBERS[a]} and {NUMBERS[b]}?|How much is {NUMBERS[a]} and {NUMBERS[b]}?]@{NUMBERS[a].capitalize()} and {NUMBERS[b]} make {NUMBERS[a + b]}.", {}),
        rng.choice(TALK),
    ])).split("@")


TALK = [(text, {}) for text in """[Hello|Hello!|Hi|Hi!|Good morning!|Good morning]@Hello! [Do you want to hear a story?|What do you want to know?]
[Who are you?|What are you?|What is your name?]@I am a little storyteller. I know about foxes, boats and snow.
[What can you do?|Can you help me?|How can you help me?]@I can tell you a story, and I can answer easy questions.
[Thank you!|Thank you|Thanks!|Thanks]@You are welcome!
[Goodbye!|Goodbye|Bye|Bye!|Good night!]@Goodbye! Sleep well.
[What is a good friend?|How do I find a friend?|How can I make a friend?]@A good friend shares and helps. Say hello, and ask if they want to play.
[I am afraid of the dark.|What can I do in the dark?|Why is it dark at night?]@Take a lantern with you. The dark is only the night, and the sun comes back every morning.
[I am sad.|I feel sad.|I am so sad.|I am sad today.]@I am sorry. Tell a friend about it, and have some honey cake.
[What can I do when it rains?|It rains. What can I do?|What do I do in the rain?]@You can bake a cake, or read a book, or jump into a puddle.
[Why does it snow?|What can I do in the snow?|What can I do in winter?]@In winter it is cold, and the rain becomes snow. You can build a snowman.
[How are you?|How are you today?]@I am very well, thank you. How are you?
[How do I bake a cake?|What do I need for a cake?]@Take flour, eggs and milk, and do not forget the sugar.
[I am hungry.|What can I eat?|I am so hungry!]@Have some warm bread, and share it with a friend.
[How does a seed grow?|How do I plant a seed?]@Put it into the ground, give it water every day, and wait.
[I cannot sleep.|How can I sleep?|I am tired.]@Close your eyes and think of the sea. Good night!""".splitlines()]


def request(rng):
    """A wish for a story, and the story."""
    if rng.random() < 0.5:
        hero = child(rng)
        about = rng.choice([f"{hero.name}", f"a {hero.kind} named {hero.name}", f"a {hero.kind}"])
    else:
        hero = animal(rng)
        about = rng.choice([f"a {hero.kind}", f"a {hero.kind}", f"a {hero.kind} named {hero.name}"])
    plots = [plot for plot in PLOTS if hero.kind in ("girl", "boy") or plot not in FOR_CHILDREN and not (plot in WITH_WATER and hero.kind in WATERY)]
    ask = "[Tell me a story about {about}.|Can you tell me a story about {about}?|I want a story about {about}.|Please tell me a story about {about}.]"
    return expand(rng, ask, {"about": about}), story(rng, hero, rng.choice(plots), short=True)


def chat(rng):
    """Turns of a user and an assistant."""
    turn = lambda: request(rng) if rng.random() < 0.45 else fact(rng)
    return [tuple(turn()) for _ in range(1 if rng.random() < 0.6 else 2)]


def told_of(rng):
    """A place in a story where a thing is named again, and what it may be: context, choices, answer."""
    while True:
        text = story(rng, plot=rng.choice(["lost", "broken", "market", "star", "neighbour", "hungry", "sick"]))
        names = [thing[0] for thing in THINGS] + FOODS
        found = [(text.rfind(f" {name}"), name) for name in names if text.count(f" {name}") > 1]
        if not found:
            continue
        place, right = max(found)
        pool = FOODS if right in FOODS else [thing[0] for thing in THINGS]
        choices = rng.sample([name for name in pool if name != right], 3) + [right]
        rng.shuffle(choices)
        return text[:place], choices, choices.index(right)


def habit(rng):
    """What an animal eats: context, choices, answer."""
    kind, right, _ = rng.choice(ANIMALS)
    choices = rng.sample([food for _, food, _ in ANIMALS if food != right], 3) + [right]
    rng.shuffle(choices)
    name = rng.choice(BOYS)
    return f"{name} met a little {kind}. \"I am hungry,\" said the {kind}. So {name} gave it some", choices, choices.index(right)


if __name__ == "__main__":
    rng = random.Random(1)
    for plot in PLOTS:
        print(plot, "--", story(rng, plot=plot), "\n")
    for _ in range(6):
        print(pirate(rng), "\n")
    for _ in range(15):
        print(chat(rng))
    print(solved(rng))
    for _ in range(3):
        print(told_of(rng), habit(rng))
