"""Tests of the project; they need nothing but what is in this folder."""
