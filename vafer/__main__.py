"""`python -m vafer` is `vafer`."""

from vafer.cli import main

if __name__ == "__main__":
    main()
