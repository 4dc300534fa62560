"""Renew the list of operators: python -m tests.device.fake_cuda (about two minutes)."""

from tests.device.fake_cuda import golden
from tests.device.fake_cuda.cases import MODEL_CASES, operators_of, pairwise


def main():
    cases = [*pairwise(), *MODEL_CASES.values()]
    operators = set().union(*(operators_of(**case) for case in cases))
    before, _ = golden.read() if golden.FILE.exists() else (set(), "")
    golden.write(operators)
    print(f"{len(operators)} operators; new: {sorted(operators - before)}; gone: {sorted(before - operators)}")


if __name__ == "__main__":
    main()
