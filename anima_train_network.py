"""The trainer under the name that Kohya's configurations and launch scripts use.

    accelerate launch anima_train_network.py --config_file F --dataset_config F

is `anima-pipe train` with the same options.
"""

from stages.train import command

if __name__ == "__main__":
    command()
