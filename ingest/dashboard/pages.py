"""All pages of the dashboard, in the order of the navigation."""

from __future__ import annotations

from ingest.dashboard import (
    experiments,
    funnels,
    health,
    leads,
    live_page,
    onboarding,
    overview,
    retention,
    sharing,
)
from ingest.dashboard.catalogue import Catalogue, joined


def catalogue() -> Catalogue:
    return joined(
        (overview.PAGES, overview.PANELS, ()),
        (live_page.PAGES, live_page.PANELS, ()),
        (funnels.PAGES, funnels.PANELS, funnels.ACTIONS),
        (retention.PAGES, retention.PANELS, ()),
        (onboarding.PAGES, onboarding.PANELS, ()),
        (experiments.PAGES, experiments.PANELS, experiments.ACTIONS),
        (leads.PAGES, leads.PANELS, leads.ACTIONS),
        (health.PAGES, health.PANELS, health.ACTIONS),
        (sharing.PAGES, (), sharing.ACTIONS),
        downloads=leads.DOWNLOADS,
    )
