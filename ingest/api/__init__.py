"""Operations over HTTP: declared once, checked, documented, run under the caller's role."""
