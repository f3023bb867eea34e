"""Names of variations, and the sources that they tell."""

import pytest

from boxtwin.datasets.variation_names import earlier_image_name, image_name, match_names


@pytest.mark.parametrize(
    "sources",
    [
        ("a.png", "sub/a.png"),
        ("s1_x.png", "s1/x.png"),
        ("2024-01.png", "2024/01.png"),
        ("a.png", "b/a.png", "c/b/a.png"),
        ("schi\u0308ff.png", "sub/schi\u0308ff.png"),
        ("a.png", "sub\\a.png", "sub\\deep\\a.png"),
    ],
)
def test_paths_of_stores_tell_their_source_whatever_others_are_called(sources: tuple[str, ...]) -> None:
    for named in (image_name, earlier_image_name):
        paths = {named(source, number): (source, number) for source in sources for number in (1, 12)}
        assert match_names(paths, sources) == paths
        assert match_names([path.replace("/", "\\") for path in paths], sources) == {
            path.replace("/", "\\"): told for path, told in paths.items()
        }


def test_a_path_that_two_sources_share_tells_neither() -> None:
    assert match_names(["images/a__b_v01.png"], ["a/b.png", "a__b.png"]) == {}
    assert match_names(["a_v01.png"], ["a.png", "sub/a.png"]) == {}
