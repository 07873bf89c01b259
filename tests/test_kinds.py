"""Classes that configs choose by name: what is built, what is refused, and options of earlier releases."""
import pytest

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import Kinds, arguments_of


class Fruit:
    def __init__(self, weight, colour='green', seed=None):
        self.weight, self.colour, self.seed = weight, colour, seed


class Apple(Fruit):
    """Hands the rest on to its base."""

    renamed = dict(mass='weight')
    removed = dict(price='fruit is free: leave it out')

    def __init__(self, sort='Elstar', **kwargs):
        super().__init__(**kwargs)
        self.sort = sort


class Plain:
    pass


class Closed(Fruit):
    """Takes nothing of its base's."""

    def __init__(self, *, sweet=True):
        super().__init__(1)
        self.sweet = sweet


@pytest.fixture
def fruits():
    kinds = Kinds('fruit')
    for cls in (Fruit, Apple, Plain, Closed):
        assert kinds.register(cls) is cls
    return kinds


def test_build_by_name_prefix_and_class(fruits):
    for type_ in ('Apple', 'mmprovpt.Apple', Apple):
        apple = fruits.build(dict(type=type_, sort='Boskoop', weight=3, colour='red'))
        assert type(apple) is Apple and (apple.sort, apple.weight, apple.colour) == ('Boskoop', 3, 'red')
    assert type(fruits.build(dict(type='Plain'))) is Plain


def test_a_class_of_the_users_need_not_be_registered(fruits):
    class Pear(Fruit):
        pass

    assert type(fruits.build(dict(type=Pear, weight=1))) is Pear and 'Pear' not in fruits


def test_config_is_not_changed(fruits):
    config = dict(type='Apple', mass=3)
    with pytest.warns(FutureWarning):
        fruits.build(config)
    assert config == dict(type='Apple', mass=3)


def test_runtime_arguments(fruits):
    """The config's own take precedence, and those that a class does not have are left out."""
    apple = fruits.build(dict(type='Apple', weight=3), seed=7, device='cpu', colour='blue')
    assert (apple.weight, apple.seed, apple.colour) == (3, 7, 'blue')
    assert fruits.build(dict(type='Apple', weight=3, seed=1), seed=7).seed == 1
    assert fruits.build(dict(type='Closed'), seed=7, sweet=False).sweet is False


def test_runtime_arguments_cannot_be_given_in_a_config(fruits):
    assert fruits.check(dict(type='Fruit', weight=3), runtime=('seed', )) == (Fruit, dict(weight=3))
    with pytest.raises(ConfigError, match='Fruit has no argument seed; known are weight, colour$'):
        fruits.check(dict(type='Fruit', weight=3, seed=1), runtime=('seed', ))


@pytest.mark.parametrize('config', [None, 'Apple', 3, [dict(type='Apple')], {}, dict(weight=3)])
def test_what_is_no_config(fruits, config):
    with pytest.raises(ConfigError, match=r"^fruit=.*, but it must be a dict such as dict\(type='Fruit'\)$"):
        fruits.check(config)


@pytest.mark.parametrize('name', ['Pear', 'apple', 'mmdet.Apple', None, 3])
def test_unknown_type_lists_the_known(fruits, name):
    with pytest.raises(ConfigError, match=f'^fruit: type={name!r} is unknown; known are Fruit, Apple, Plain, Closed$'):
        fruits.build(dict(type=name))


@pytest.mark.parametrize('config, message', [
    (dict(type='Apple', wait=3, color=1), 'Apple has no argument color, wait; known are sort, weight, colour, seed$'),
    (dict(type='Closed', colour='red'), 'Closed has no argument colour; known are sweet$'),
    (dict(type='Plain', colour='red'), 'Plain has no argument colour; known are $'),
    (dict(type='Fruit', self=1), 'Fruit has no argument self'),
])
def test_unknown_arguments_list_the_known(fruits, config, message):
    with pytest.raises(ConfigError, match=message):
        fruits.build(config)


def test_renamed_argument_works_for_a_release(fruits):
    with pytest.warns(FutureWarning, match='Apple: mass is called weight now; the old name goes with the next release'):
        assert fruits.build(dict(type='Apple', mass=3)).weight == 3


def test_removed_argument_says_what_to_do_instead(fruits):
    with pytest.raises(ConfigError, match='Apple has no price any more: fruit is free: leave it out'):
        fruits.build(dict(type='Apple', weight=3, price=1))


def test_a_name_is_given_once(fruits):
    assert fruits.register(Apple) is Apple  # a module that is imported again
    other = type('Apple', (), {})
    with pytest.raises(ConfigError, match='a fruit called Apple exists already'):
        fruits.register(other)
    assert fruits['Apple'] is Apple


def test_registering_as_a_decorator(fruits):
    @fruits.register
    class Quince(Fruit):
        pass

    assert type(fruits.build(dict(type='Quince', weight=2))) is Quince


def test_errors_are_value_errors(fruits):
    """So that whoever knows nothing of this package can catch them."""
    with pytest.raises(ValueError):
        fruits.build(dict(type='Pear'))


@pytest.mark.parametrize('cls, names', [
    (Fruit, ['weight', 'colour', 'seed']), (Apple, ['sort', 'weight', 'colour', 'seed']), (Closed, ['sweet']),
    (Plain, []),
])
def test_arguments_of(cls, names):
    assert arguments_of(cls) == names
