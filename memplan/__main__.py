"""python -m memplan."""

from memplan.cli.main import main

if __name__ == "__main__":
    main()
