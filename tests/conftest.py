"""Marks shared by the tests."""


def pytest_configure(config):
    config.addinivalue_line("markers", "dev: needs the development environment (papermill, nbdev, a checkout)")
