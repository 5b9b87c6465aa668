"""Golden parity table: how far this project is from the published implementation's numbers.

python -m benchmarks.golden_parity
"""

from tests.golden_parity import all_parities


def main() -> None:
    """Print one line for each compared quantity."""
    print(f"{'file':18} {'quantity':52} {'error':>9}  allowed")
    failed = 0
    for row in all_parities():
        failed += row.error > row.tolerance
        verdict = "" if row.error <= row.tolerance else "  <- too far"
        print(f"{row.file:18} {row.quantity:52} {row.error:9.2g}  {row.tolerance:.1e}{verdict}")
    print(f"{failed} too far" if failed else "all within what is allowed")


if __name__ == "__main__":
    main()
