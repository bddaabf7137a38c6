"""``python -m speechbrain_ext COMMAND``."""

from speechbrain_ext.cli import main

if __name__ == "__main__":
    main()
