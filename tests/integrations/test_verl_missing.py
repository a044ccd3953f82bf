"""Importing the integration without verl names the extra to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from pacedrl.errors import InputError


@pytest.mark.parametrize("missing", ["ray", "verl"])
def test_importing_without_it_names_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delitem(sys.modules, "pacedrl.integrations.verl", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r'pacedrl.integrations.verl needs verl .*pip install "pacedrl\[verl\]"'):
        importlib.import_module("pacedrl.integrations.verl")
