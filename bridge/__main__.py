"""The `sideman` command. Spawned processes import this file too, so it imports nothing itself."""


def main() -> None:
    """Run the command line."""
    try:
        from bridge.cli import run

        run()
    except KeyboardInterrupt:  # while the command line itself is being imported
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
