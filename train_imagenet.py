"""Train an image classifier: `python train_imagenet.py ...` is `python -m hyena_vision.train ...`."""

from hyena_vision.train import main

if __name__ == "__main__":
    main(prog="train_imagenet.py")
