"""A page to look into a model whose circuit is known: strings, swaps, both models' answers, in any browser.

drawing    the circuit as an SVG, which model cards have too
programs   what a variable computes, as operations that a page can run
page       the data and the page
static/    the page's scripts: arrays.js runs programs, models.js both models, page.js what is seen
"""

from siitjax.io.explorer.drawing import draw as draw
from siitjax.io.explorer.page import page as page
