"""Onboarding: a session, its steps one after the other, its activities, its funnel, and customers' credentials."""
