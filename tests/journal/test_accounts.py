"""The accounts balance: every event received is stored, a duplicate, rejected or pending, and any error shows."""

from __future__ import annotations

import pytest

from ingest.base.refusals import RejectReason
from ingest.journal.accounts import Accounts


def test_new_accounts_balance():
    accounts = Accounts()
    assert (accounts.unaccounted, accounts.pending, accounts.rejected.total()) == (0, 0, 0)


@pytest.mark.parametrize("entry", ["stored", "duplicate_at_door", "duplicate_in_database"])
def test_each_possible_outcome_settles_an_event(entry):
    accounts = Accounts()
    accounts.received = 3
    assert accounts.unaccounted == 3
    setattr(accounts, entry, 3)
    assert accounts.unaccounted == 0


def test_recovered_events_were_received_by_another_process():
    accounts = Accounts()
    accounts.recovered = 5
    assert (accounts.received, accounts.unaccounted) == (0, 5)
    accounts.stored = 5
    assert accounts.unaccounted == 0


def test_rejected_events_are_counted_by_reason():
    accounts = Accounts()
    accounts.received = 6
    accounts.reject(RejectReason.TOO_OLD)
    accounts.reject(RejectReason.TOO_OLD)
    accounts.reject(RejectReason.OVERLOADED, 4)
    assert accounts.rejected == {RejectReason.TOO_OLD: 2, RejectReason.OVERLOADED: 4}
    assert accounts.unaccounted == 0


def test_an_event_lost_or_counted_twice_shows():
    accounts = Accounts()
    accounts.received = 10
    accounts.stored = 9
    assert accounts.unaccounted == 1
    accounts.stored = 11
    assert accounts.unaccounted == -1


def test_pending_is_the_sum_over_all_journals():
    accounts = Accounts()
    waiting = {"ours": 2, "adopted": 3}
    accounts.watch_pending(lambda: waiting["ours"])
    forget = accounts.watch_pending(lambda: waiting["adopted"])
    accounts.received, accounts.recovered = 2, 3
    assert (accounts.pending, accounts.unaccounted) == (5, 0)
    waiting["ours"], waiting["adopted"] = 0, 0
    assert (accounts.pending, accounts.unaccounted) == (0, 5)
    accounts.stored = 5
    forget()
    # That journal's count is no longer included.
    waiting["adopted"] = 100
    assert (accounts.pending, accounts.unaccounted) == (0, 0)


def test_forgetting_a_journal_leaves_the_others():
    accounts = Accounts()
    forgets = [accounts.watch_pending(lambda number=number: number) for number in (1, 10, 100)]  # type: ignore[misc]
    for forget, left in zip((forgets[1], forgets[0], forgets[2]), (101, 100, 0), strict=True):
        forget()
        assert accounts.pending == left


def test_events_from_receipt_to_outcome():
    accounts = Accounts()
    pending = 0
    accounts.watch_pending(lambda: pending)
    accounts.received += 100
    accounts.duplicate_at_door += 10
    accounts.reject(RejectReason.INVALID_NAME, 5)
    pending = 85
    assert accounts.unaccounted == 0
    pending, accounts.stored, accounts.duplicate_in_database = 0, 80, 3
    assert accounts.unaccounted == 2
    accounts.reject(RejectReason.DATABASE_REFUSED, 2)
    assert accounts.unaccounted == 0


def test_repr_shows_the_state():
    accounts = Accounts()
    accounts.received, accounts.recovered, accounts.stored = 9, 8, 7
    accounts.duplicate_at_door, accounts.duplicate_in_database = 6, 5
    accounts.watch_pending(lambda: 4)
    accounts.reject(RejectReason.TOO_OLD, 3)
    shown = repr(accounts)
    for part in ("received=9", "recovered=8", "stored=7", "duplicate=6+5", "pending=4", "too_old", ": 3"):
        assert part in shown
