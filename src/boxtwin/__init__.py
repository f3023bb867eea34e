"""boxtwin: do diffusion-made variations of a few labelled images make a detector and its counts better?"""

__version__ = "0.1.0"
