"""The `sideman` command. Spawned processes import this file too, so it imports nothing itself."""


def main() -> None:
    """Run the command line."""
    from bridge.cli import run

    run()


if __name__ == "__main__":
    main()
