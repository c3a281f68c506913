"""An option of the tests: how many damaged files to try."""


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz",
        type=int,
        default=450,
        metavar="N",
        help="cases of the tests of damaged files, in all (450, some seconds; 10000 some minutes)",
    )
    parser.addoption(
        "--fuzz-case",
        type=int,
        metavar="I",
        help="the case to repeat alone, as a failure names it; add -k <kind>",
    )
