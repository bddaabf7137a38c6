"""What the speakers of the demonstration corpus say: 120 sentences written for it.

Plain everyday English of 8 to 16 words, 2 to 6 seconds when spoken. They cover all
English phonemes many times over and come from nobody's book.
"""

SENTENCES = tuple(
    line.strip()
    for line in """
    The quick carpenter measured every plank twice before lunch.
    My neighbour grows tomatoes on the roof and gives most of them away.
    We missed the early train because the bridge was closed for repairs.
    She keeps a list of every bird that has ever visited her garden.
    The old lighthouse still turns its lamp toward the empty sea.
    Nobody remembered where the spare keys had been hidden last winter.
    A thin layer of ice covered the pond by seven in the morning.
    He prefers strong coffee, but only when somebody else makes it.
    They painted the kitchen yellow and regretted it within a week.
    The museum opens at ten and closes when the guard gets hungry.
    Please leave the heavy boxes next to the door on the left.
    Her brother repairs clocks in a small shop behind the station.
    It rained for nine days, and on the tenth the river gave up its banks.
    The violin sounded warmer after it had rested near the stove.
    Twelve children shared three bicycles and never argued about it.
    You can see the mountains from here when the factory is asleep.
    The baker whistles while the dough is rising in the dark.
    I would rather walk home than wait for another crowded bus.
    Their cat sleeps in the piano and wakes up at the first note.
    The captain read the weather in the colour of the evening clouds.
    Someone left a blue umbrella under the third seat from the back.
    We planted garlic in October and forgot about it until June.
    A good map is worth more than a fast car in these hills.
    The teacher drew a perfect circle without lifting the chalk.
    He sold his boat, bought a horse, and moved away from the coast.
    The soup needs salt, a little pepper, and much more patience.
    On Thursdays the market smells of oranges and fresh bread.
    She answered every question with another question and a smile.
    The engine coughed twice and then refused to say another word.
    There is a narrow path behind the church that leads to the well.
    My uncle builds kites that are too large for our street.
    They argued about the shape of the table for an hour and a half.
    The letter arrived eleven years after it had been posted.
    Do not feed the geese, because they will follow you home.
    The choir practises in a barn with a very generous echo.
    A wooden spoon is all you need to start a decent orchestra.
    The valley fills with fog before the farmers have had breakfast.
    He counted the stairs aloud, although he knew there were forty.
    The bookshop sells maps, pencils, and a few surprising cheeses.
    We watched the harvest moon climb over the grain elevator.
    The dentist hums old songs to keep her patients calm.
    Every spring the same pair of swallows returns to our porch.
    The judge asked for silence, and even the radiator obeyed.
    I found a coin from Norway in the pocket of a borrowed coat.
    The tailor pinned the sleeve and told me to breathe normally.
    They launched the balloon at dawn from a field of clover.
    A patient fisherman never looks at the time before noon.
    The elevator stops on every floor for reasons of its own.
    She folded the newspaper into a hat and wore it to the office.
    The gardener talks to the roses and swears at the slugs.
    We need four eggs, a cup of flour, and somebody who can cook.
    The postman knows which dogs are friendly and which only look it.
    His handwriting improved after he had broken his wrist.
    The orchestra tuned for so long that the audience began to clap.
    A small stone in the shoe can spoil the longest holiday.
    The ferry leaves when the driver has finished his sandwich.
    She invented a board game that takes three weekends to lose.
    The window was stuck, so we climbed in through the cellar.
    He learned to juggle during the quiet hours at the pharmacy.
    The village clock runs slow, and everyone is grateful for it.
    Our teacher once crossed the desert with two camels and a radio.
    The paint will dry faster if you stop touching it.
    A grey heron stood on one leg in the middle of the fountain.
    They keep the good plates for guests who never come.
    The wind changed, and the whole harbour smelled of smoked fish.
    I used to know the name of every river between here and the border.
    The carpenter's daughter became the first pilot in the family.
    She bought nineteen metres of red cloth and would not say why.
    The ladder is shorter than the tree, but the ambition is not.
    We heard thunder in the distance and moved the chairs inside.
    The butcher's dog is the best fed animal in the county.
    He wrote a cheerful song about the end of the summer.
    The stars are brighter on this side of the ridge.
    You should oil the hinges before the guests arrive tonight.
    The chess club meets in the laundry because it is warm there.
    A yellow bus with no driver rolled gently into the hedge.
    The nurse brought fresh water and the news from the town.
    They measured the field with a rope and a great deal of shouting.
    The puppy chewed the corner off the most expensive book.
    She hid the birthday cake in the washing machine.
    The bridge was built by three brothers who did not speak to each other.
    We ate chestnuts by the fire and listened to the shutters rattle.
    The new road saves an hour and ruins a perfectly good forest.
    He forgot his speech, so he described his breakfast instead.
    The library lends out fishing rods as well as novels.
    A tired donkey blocked the road and enjoyed the view.
    The storm took the fence but left the gate standing.
    She has walked the same beach every morning for thirty years.
    The cook tasted the sauce, frowned, and reached for the lemons.
    They dug a pond by hand and filled it with frogs.
    The radio plays nothing but waltzes after midnight.
    I asked for directions and was given a short history of the town.
    The blacksmith shoes horses on Monday and fixes bicycles on Friday.
    A row of poplars hides the railway from the house.
    The twins finish each other's sentences, usually wrongly.
    He polished the trumpet until he could see his teeth in it.
    The mayor cut the ribbon with a pair of garden shears.
    We sailed past the island without noticing the volcano.
    The apple tree by the school belongs to anyone who can climb.
    She speaks five languages and is quiet in all of them.
    The mechanic listened to the engine like a doctor.
    They sell honey from a cart at the bottom of the hill.
    The curtain fell too early and hid the final joke.
    A fox crosses our yard each night at a quarter past two.
    The snow was so dry that it squeaked under our boots.
    He mended the net while the tide was going out.
    The bank closed for lunch and stayed closed until spring.
    You will find the measuring tape in the drawer with the string.
    The painter mixed seven greens before he was pleased with one.
    She waved from the balcony until the taxi turned the corner.
    The goats know the way better than the shepherd does.
    We shared one blanket and a very long story about a whale.
    The shoemaker closed his shop and opened a dancing school.
    A broken chair became the sturdiest shelf in the house.
    The scientist kept a jar of sand from every beach she had visited.
    He thought the noise was a ghost, but it was only the fridge.
    The peaches are cheap this week because the trucks came early.
    They raised the piano through the window with ropes and good luck.
    The children drew a dragon along the whole length of the wall.
    My grandmother could predict the frost by the sound of the gate.
    """.strip().splitlines()
)


class Reader:
    """Reads the sentences in a random order, each once before any comes again.

    Arguments
    ---------
    rng : np.random.Generator
        Decides the order.
    """

    def __init__(self, rng):
        self._rng = rng
        self._left = []

    def next(self):
        """The next sentence (str)."""
        if not self._left:
            self._left = list(self._rng.permutation(len(SENTENCES)))
        return SENTENCES[self._left.pop()]
