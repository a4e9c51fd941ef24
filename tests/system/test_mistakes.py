"""What a beginner sees: one line that names the place and the remedy. Each mistake is made in a new project."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from config.cli.new import new_command
from tests.system.process import Callboard
from tests.system.test_commands import one_line

SERVICE, MESSAGES, MIGRATION, FILE = "shop/service.py", "shop/messages.py", "shop/migrations/0001_items.sql", "callboard.toml"
START, INIT = "self.store = Store(self.db)", "    async def on_start"
OWN_INIT = "    def __init__(self, settings: ShopSettings | None = None) -> None:\n        super().__init__(settings)\n"

MISTAKES = {
    "a list in a message": (MESSAGES, "    text: Text\n", "    text: Text\n    tags: list[str] = []\n", "shop.AddItem.tags holds list: messages are deeply immutable (tuple instead of list"),
    "a list in a reply": (MESSAGES, "tuple[Item, ...]", "list[Item]", "shop.ListItems holds list at items: replies are deeply immutable (tuple instead of list"),
    "a message that is none": (SERVICE, "message: AddItem, ", "message: str, ", "Shop.add: str is not a message: expected a class that is decorated with @contract.message"),
    "no allow": (SERVICE, "allow=USERS, once=True, ", "once=True, ", "Shop.add: say who may call, as @handles(allow=roles('rider'))"),
    "roles in a list": (SERVICE, 'roles("rider", "operator", "admin")', 'roles(["rider"])', "service.py:17: roles(['rider']): expected one or several texts, as roles('one', 'another')"),
    "another reply": (SERVICE, "-> Items:", "-> Item:", "Shop.list_items: returns Item, but shop.ListItems is answered by Items"),
    "a path twice": (SERVICE, 'http="GET /shop/items"', 'http="POST /shop/items"', "POST /shop/items is the route of add and list_items: change one"),
    "a request that nobody handles": (SERVICE, '    @handles(http="GET /shop/items", allow=USERS)\n', "", "nobody handles shop.ListItems: add `@handles(allow=…)"),
    "no contract": (SERVICE, "    contract = shop\n", "", "Shop: set `contract = Contract('name')`"),
    "a contract with capitals": (MESSAGES, 'Contract("shop")', 'Contract("Shop")', "messages.py:8: contract name 'Shop': expected lower-case letters"),
    "a name that is not defined": (SERVICE, "USERS = roles(", "USERS = role(", "service.py:17: NameError: name 'role' is not defined"),
    "bad syntax": (SERVICE, "class Shop(Service):", "class Shop(Service)", "service.py:20: SyntaxError: expected ':'"),
    "a mistyped class": (FILE, 'service:Shop"', 'service:Shp"', "shop.service has no Shp: did you mean shop.service:Shop?"),
    "a mistyped module": (FILE, "shop.service", "shop.servic", "there is no module shop.servic in {folder} or on the path: did you mean shop.service?"),
    "a table with another name": (FILE, "[services.shop]", "[services.shopp]", "services.shopp: 'shop.service:Shop' has the contract 'shop': call this table [services.shop]"),
    "an unknown setting": (FILE, 'service:Shop"\n', 'service:Shop"\nsettings = { most_item = 3 }\n', "services.shop.settings.most_item: unknown setting: did you mean services.shop.settings.most_items"),
    "a setting of a wrong type": (FILE, 'service:Shop"\n', 'service:Shop"\nsettings = { most_items = "x" }\n', "callboard.toml: services.shop.settings.most_items: expected `int`, got `str`"),
    "an __init__ without settings": (SERVICE, INIT, "    def __init__(self) -> None:\n        pass\n\n    async def on_start", "its __init__ takes no settings: def __init__(self, settings: ShopSettings)"),
    "a variable that is not set": (SERVICE, INIT, f"{OWN_INIT}        import os; os.environ['SHOP_KEY']\n\n{INIT}", "service.py:29: the environment variable SHOP_KEY is not set: set it"),
    "an __init__ that fails": (SERVICE, INIT, f"{OWN_INIT}        1 / 0\n\n{INIT}", "service.py:29: the service cannot be made: ZeroDivisionError: division by zero"),
    "bad SQL in a migration": (MIGRATION, "CREATE TABLE", "CREAT TABLE", '0001_items.sql: near "CREAT": syntax error'),
    "bad SQL at the start": (SERVICE, START, f"{START}\n        await self.db.fetch('SELEC 1')", 'service.py:29: shop: near "SELEC": syntax error'),
    "a table that is missing": (SERVICE, START, f"{START}\n        await self.db.fetch('SELECT * FROM things')", "no such table: things: create it in a file in the service's folder migrations/"),
    "a request without calls": (SERVICE, START, f"{START}\n        from services.wallet.messages import GetWallet\n        await ctx.request(GetWallet())", "service.py:30: shop: shop asks for wallet.GetWallet, but wallet is not in its calls: add it there"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_one_line_with_its_place_and_remedy(
    tmp_path: Path, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(new_command, ["shop"]).exit_code == 0
    project = tmp_path / "shop"
    file, right, wrong, expected = MISTAKES[mistake]
    text = (project / file).read_text(encoding="utf-8")
    assert text.count(right) == 1, "the mistake can be made"
    (project / file).write_text(text.replace(right, wrong), encoding="utf-8")
    async with Callboard(project, "run", "shop", CALLBOARD_SERVICES="") as running:
        line = one_line(await running.ends(), running.output)
    assert expected.replace("{folder}", str(project)) in line
